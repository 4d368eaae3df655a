"""Heat maps: numbers by row and column as tiles, each with its text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle

from lorap_exp.reporting.drawing import Chart, explain

SIDE = 0.16
"""Inches of a tile."""
COLOURS = mpl.colormaps["viridis"].resampled(20)
"""Even steps for every eye, and in grey; the exact number stands in a tile's text."""
MARK = "#e5484d"


@dataclass(frozen=True)
class Tile:
    """A tile: its number, and its text on hovering."""

    value: float
    text: str
    marked: bool = False


def heat_map(
    rows: Sequence[str],
    columns: Sequence[int],
    tiles: Mapping[tuple[str, int], Tile],
    *,
    title: str,
    column_name: str,
    meaning: str,
    limits: tuple[float, float],
) -> Chart:
    """Tiles by (row, column); where there is none, the page shows through.

    `meaning` says what the colours are, `limits` what the first and the last colour stand for.
    """
    across, down = {c: i for i, c in enumerate(columns)}, {r: i for i, r in enumerate(rows)}
    ordered = sorted(tiles.items(), key=lambda item: item[1].marked)  # outlines on top
    places = [(across[column], down[row]) for (row, column), _ in ordered]

    def draw(axes: Axes) -> None:
        shapes = [Rectangle((x - 0.46, y - 0.46), 0.92, 0.92) for x, y in places]
        edges = [MARK if tile.marked else "none" for _, tile in ordered]
        drawn = PatchCollection(shapes, cmap=COLOURS, edgecolors=edges, linewidths=2)
        drawn.set_array([tile.value for _, tile in ordered])
        drawn.set_clim(*limits)
        drawn.set_clip_on(False)
        explain(drawn, [tile.text for _, tile in ordered])
        axes.add_collection(drawn)
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        every = 1 if len(columns) <= 16 else 5
        shown = [i for i, column in enumerate(columns) if column % every == 0]
        axes.set_xticks(shown, [str(columns[i]) for i in shown])
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xlabel(column_name)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        figure = axes.get_figure()
        assert figure is not None
        bar = figure.colorbar(drawn, ax=axes, fraction=0.05, aspect=12, shrink=0.9)
        bar.set_label(meaning)

    width, height = SIDE * len(columns) + 1.4, SIDE * len(rows) + 0.9
    return Chart(title, draw, max(width, 3.6), max(height, 1.6))
