"""Energy spectra, as charts of the page and as an image."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lorap_exp.analysis.spectra import Spectrum
from lorap_exp.reporting.drawing import Chart, explain, look, write_grid

ATTENTION = ("q", "k", "v", "o")


def plot_spectra(spectra: Sequence[Spectrum], model: str, path: Path) -> None:
    """A row for each metric."""
    write_grid(spectrum_charts(spectra), 2, f"energy spectra of {model}", path)


def spectrum_charts(spectra: Sequence[Spectrum]) -> list[Chart]:
    """For each metric, cumulative energy of attention and MLP, and rank share by layer."""
    charts = []
    for metric in dict.fromkeys(s.metric for s in spectra):
        chosen = [s for s in spectra if s.metric == metric]
        share = "0.95" if "0.95" in chosen[0].ranks else next(iter(chosen[0].ranks))
        charts += [
            Chart(f"{metric}: energy kept, mean and range", partial(_energies, chosen)),
            Chart(f"{metric}: rank that keeps {float(share):.0%}", partial(_ranks, chosen, share)),
        ]
    return charts


def _energies(spectra: Sequence[Spectrum], axes: Axes) -> None:
    for number, part in enumerate(("attention", "mlp")):
        colour, _ = look(number)
        found = [s.cumulative for s in spectra if (s.matrix in ATTENTION) == (part == "attention")]
        if found:
            curves = np.array(found)
            x = np.linspace(0, 1, curves.shape[1])
            axes.plot(x, curves.mean(0), color=colour, label=part)
            axes.fill_between(x, curves.min(0), curves.max(0), color=colour, alpha=0.15)
    axes.set(xlabel="rank / full rank", ylabel="energy kept")
    axes.legend()


def _ranks(spectra: Sequence[Spectrum], share: str, axes: Axes) -> None:
    for number, matrix in enumerate(dict.fromkeys(s.matrix for s in spectra)):
        rows = [s for s in spectra if s.matrix == matrix]
        colour, marker = look(number)
        (line,) = axes.plot(
            [s.block for s in rows], [s.ranks[share] / s.full for s in rows], marker=marker
        )
        line.set(color=colour, markersize=3, linewidth=1, label=matrix)
        line.set_linestyle("-" if matrix in ATTENTION else "--")
        texts = [f"layer {s.block}, {matrix}: rank {s.ranks[share]} of {s.full}" for s in rows]
        explain(line, texts)
    axes.set(xlabel="layer", ylabel="rank / full rank", ylim=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.legend(ncols=2, fontsize=7)
