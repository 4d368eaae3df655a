"""Perplexity and mean accuracy against the ratio removed: a line for each method and setting."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from lorap_exp.reporting.figures import lines
from lorap_exp.workspace.files import replacing

MARKERS = "osD^v"
NARROW = 30.0
"""Largest over smallest perplexity up to which the axis has labels between powers of ten."""


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
        for number, (label, own, path_of_line) in enumerate(lines(table)):
            rows = (own if path_of_line.empty else path_of_line).dropna(subset=[panel])
            errors = rows[f"{panel} ±"] if f"{panel} ±" in table.columns else None
            axis.errorbar(
                rows["ratio"], rows[panel], yerr=errors, capsize=3, label=label, **_style(number)
            )
        axis.set_xlabel("ratio removed")
        axis.grid(alpha=0.3)
        if panel in perplexities:
            axis.set_yscale("log")
            _plain_numbers(axis)
            axis.set_title(f"perplexity, {panel} (lower is better)", fontsize=10)
        else:
            axis.set_title(f"{panel}, % (higher is better)", fontsize=10)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    handles, labels = axes[0][0].get_legend_handles_labels()
    columns = max(1, 2 * len(panels))
    figure.legend(
        handles,
        labels,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncol=columns,
        fontsize=8,
    )
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, bbox_inches="tight")
    plt.close(figure)


def _style(number: int) -> dict[str, str]:
    """Colours first, then markers, so that twenty lines can be told apart."""
    return {"color": f"C{number % 10}", "marker": MARKERS[number // 10 % len(MARKERS)]}


def _plain_numbers(axis: Axes) -> None:
    """100 and 1000, not powers; numbers between them where there is less than a decade or two."""
    low, high = axis.get_ylim()
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_major_formatter(plain)
    axis.yaxis.set_minor_formatter(plain if high / low < NARROW else NullFormatter())
