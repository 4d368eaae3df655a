"""Energy spectra as an image."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from lorap_exp.analysis.spectra import POINTS, Spectrum

ATTENTION = ("q", "k", "v", "o")


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
