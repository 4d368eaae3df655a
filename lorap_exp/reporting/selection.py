"""The search for layers to remove, as charts of the page and as an image."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lorap_exp.methods.streamline.selection import CONTIGUOUS, Selection
from lorap_exp.reporting.drawing import PALETTE, Chart, explain, write_grid
from lorap_exp.reporting.tiles import Tile, heat_map


def plot_selection(selection: Selection, model: str, path: Path) -> None:
    """The charts side by side."""
    charts = selection_charts(selection)
    write_grid(charts, len(charts), f"search for layers to remove, {model}", path)


def selection_charts(selection: Selection) -> list[Chart]:
    """Similarities over (start, length) with the choice outlined, and the scores; as far as
    they are there."""
    charts = [_similarities(selection)] if selection.map else []
    return charts + ([_scores(selection)] if selection.scores else [])


def _similarities(selection: Selection) -> Chart:
    removed = selection.removed
    span = selection.criterion in CONTIGUOUS and bool(removed)
    chosen = {(removed[0], len(removed))} if span else {(layer, 1) for layer in removed}
    values = [value for *_, value in selection.map]
    tiles = {
        (str(length), start): Tile(
            value,
            f"{length} layers from {start}: mean cosine {value:.6f}",
            (start, length) in chosen,
        )
        for start, length, value in selection.map
    }
    return heat_map(
        [str(length) for length in sorted({n for _, n, _ in selection.map}, reverse=True)],
        sorted({start for start, *_ in selection.map}),
        tiles,
        title="similarity of spans; outlined: removed",
        column_name="first layer of the span (row: its layers)",
        meaning="mean cosine",
        limits=(min(values), max(values)),
    )


def _scores(selection: Selection) -> Chart:
    """The removed layers, or the start of the removed span, in another colour."""
    removed = selection.removed
    gone = set(removed[:1] if selection.criterion in CONTIGUOUS else removed)

    def draw(axes: Axes) -> None:
        axes.plot(*zip(*selection.scores, strict=True), linewidth=1)
        for number, (label, inside) in enumerate((("stays", False), ("removed", True))):
            own = [(at, score) for at, score in selection.scores if (at in gone) == inside]
            if own:
                (marks,) = axes.plot(*zip(*own, strict=True), "os"[number], markersize=4)
                marks.set(color=PALETTE[3 * number], label=label)
                explain(marks, [f"layer {at}: {score:.6g}, {label}" for at, score in own])
        axes.set_xlabel("layer or start")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        axes.legend()

    return Chart(f"{selection.criterion}: scores", draw)
