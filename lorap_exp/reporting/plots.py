"""Perplexity and mean accuracy against the ratio removed, one line for each model and method."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import ScalarFormatter

from lorap_exp.workspace.files import replacing


def plot_sweep(table: pd.DataFrame, perplexities: Sequence[str], title: str, path: Path) -> None:
    """A PNG with one panel for each perplexity text and one for the mean accuracy."""
    means = [name for name in table.columns if name.endswith("_paper")]
    panels = [*perplexities, *means]
    if not panels:
        path.unlink(missing_ok=True)
        return
    with plt.rc_context({"text.parse_math": False}):  # a name may hold $
        _plot(panels, table, perplexities, title, path)


def _plot(
    panels: Sequence[str],
    table: pd.DataFrame,
    perplexities: Sequence[str],
    title: str,
    path: Path,
) -> None:
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.9), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for label, rows in lines(table.dropna(subset=[panel])):
            errors = rows[f"{panel} ±"] if f"{panel} ±" in table.columns else None
            axis.errorbar(
                rows["ratio"], rows[panel], yerr=errors, marker="o", capsize=3, label=label
            )
        axis.set_xlabel("ratio removed")
        axis.grid(alpha=0.3)
        if panel in perplexities:
            axis.set_yscale("log")
            for set_formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
                set_formatter(ScalarFormatter())
            axis.set_title(f"perplexity, {panel} (lower is better)", fontsize=10)
        else:
            axis.set_title(f"{panel}, % (higher is better)", fontsize=10)
    axes[0][0].legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120)
    plt.close(figure)


def lines(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """One line for each model, method and distinguishing setting, starting at the dense model."""
    after = list(table.columns).index("method") + 1
    keys = ["method", *table.columns[after : list(table.columns).index("ratio")]]
    for model, rows in table.groupby("model"):
        dense, others = rows[rows["method"] == "dense"], rows[rows["method"] != "dense"]
        if others.empty:
            yield f"{model}, dense", dense
        for values, found in others.groupby(keys):
            label = ", ".join(str(value) for value in (model, *values))
            yield label, pd.concat([dense, found]).sort_values("ratio")
