"""How low-rank is each matrix of a model? Energy spectra, weighted by activations and not.

The observation behind LoRAP (arXiv 2404.09695, section 2, figure 1): attention weights keep their
energy in fewer directions than MLP weights.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers import PreTrainedModel

from lorap_exp.calibration.walk import walk
from lorap_exp.methods.low_rank import Metric, metric_of, metric_statistics
from lorap_exp.models.families import blocks_of
from lorap_exp.ops.low_rank import energies, rank_for_energy

POINTS = 65
ATTENTION = ("q", "k", "v", "o")


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
    model: PreTrainedModel,
    ids: torch.Tensor,
    metrics: Sequence[Metric],
    shares: Sequence[float],
    *,
    batch_size: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[Spectrum]:
    """Spectra of every matrix of a dense model under every metric; the model is not changed."""
    names = blocks_of(model)[0].family.matrices
    makers = {key: make for m in metrics for key, make in metric_statistics(m).items()}
    wanted = dict.fromkeys(names, makers) if makers else {}
    found = []
    for block, statistics in progress(walk(model, ids, wanted, batch_size, "original")):
        for name in names:
            for metric in metrics:
                spectrum = energies(block.weight(name), metric_of(metric, name, statistics))
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


def plot_spectra(spectra: Sequence[Spectrum], model: str, path: Path) -> None:
    """For each metric, mean cumulative energy of attention and MLP, and rank share by layer."""
    metrics = list(dict.fromkeys(s.metric for s in spectra))
    share = next(iter(spectra[0].ranks))
    share = "0.95" if "0.95" in spectra[0].ranks else share
    figure, axes = plt.subplots(len(metrics), 2, figsize=(11, 3.4 * len(metrics)), squeeze=False)
    for (left, right), metric in zip(axes, metrics, strict=True):
        chosen = [s for s in spectra if s.metric == metric]
        for part, colour in (("attention", "tab:blue"), ("mlp", "tab:orange")):
            inside = [
                s.cumulative for s in chosen if (s.matrix in ATTENTION) == (part == "attention")
            ]
            curves = np.array(inside)
            x = np.linspace(0, 1, POINTS)
            left.plot(x, curves.mean(0), color=colour, label=part)
            left.fill_between(x, curves.min(0), curves.max(0), color=colour, alpha=0.15)
        left.set(xlabel="rank / full rank", ylabel="energy kept", title=f"{metric}: mean and range")
        for matrix in dict.fromkeys(s.matrix for s in chosen):
            rows = [s for s in chosen if s.matrix == matrix]
            style = "-" if matrix in ATTENTION else "--"
            ranks = [s.ranks[share] / s.full for s in rows]
            right.plot([s.block for s in rows], ranks, style, label=matrix)
        right.set(xlabel="layer", ylabel="rank / full rank", ylim=(0, 1))
        right.set_title(f"{metric}: rank that keeps {float(share):.0%}")
        left.legend(fontsize=8)
        right.legend(fontsize=7, ncols=2)
        left.grid(alpha=0.3)
        right.grid(alpha=0.3)
    figure.suptitle(f"energy spectra of {model}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
