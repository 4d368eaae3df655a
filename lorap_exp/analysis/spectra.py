"""How low-rank is each matrix of a model? Energy spectra, weighted by activations and not.

The observation behind LoRAP (arXiv 2404.09695, section 2, figure 1): attention weights keep their
energy in fewer directions than MLP weights.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lorap_exp.calibration.walk import Visit, Walk, walk
from lorap_exp.methods.low_rank import Metric, metric_of, metric_probes
from lorap_exp.models.source import Source
from lorap_exp.ops.low_rank import energies, rank_for_energy

POINTS = 65


@dataclass(frozen=True)
class Spectrum:
    """The spectrum of one matrix under one metric.

    Attributes:
        ranks: share of the energy -> the smallest rank that keeps it.
        full: min(out, in).
        cumulative: share of the energy kept at 65 evenly spaced ranks from 0 to full.
    """

    block: int
    matrix: str
    metric: str
    full: int
    ranks: dict[str, int]
    cumulative: list[float]


def measure_spectra(
    source: Source,
    ids: torch.Tensor,
    metrics: Sequence[Metric],
    shares: Sequence[float],
    *,
    batch_size: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[Spectrum]:
    """Spectra of every matrix of a dense model under every metric; the model is not changed."""
    names = list(source.blocks[0].family.matrices)
    probes = tuple(probe for metric in metrics for probe in metric_probes(metric, names))
    visits = [Visit(tuple(names), probes)]
    found = []
    how = Walk(batch_size, "original", rewrite=False)
    for block, _, seen in progress(walk(source, ids, visits, how)):
        for name in names:
            for metric in metrics:
                spectrum = energies(block.weight(name), metric_of(metric, name, seen))
                kept = torch.cat([torch.zeros(1).to(spectrum), spectrum.cumsum(0)])
                at = torch.linspace(0, len(spectrum), POINTS).round().long()
                found.append(
                    Spectrum(
                        block=block.index,
                        matrix=name,
                        metric=metric,
                        full=len(spectrum),
                        ranks={str(share): rank_for_energy(spectrum, share) for share in shares},
                        cumulative=(kept / spectrum.sum())[at].tolist(),
                    )
                )
    return found
