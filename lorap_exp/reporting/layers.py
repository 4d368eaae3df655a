"""What was done to each layer, as charts: the sizes of a plan, and a search over layers."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from lorap_exp.planning.edits import Insert
from lorap_exp.planning.shapes import SPACES, BlockShape
from lorap_exp.reporting.charts import Tile, heat_map
from lorap_exp.reporting.jobs import JobRecord
from lorap_exp.reporting.result import Result
from lorap_exp.reporting.svg import Point, Series, line_chart

ATTENTION = ("q", "k", "v", "o")
ORDER = (*ATTENTION, "gate", "up", "down", *SPACES)


def size_maps(jobs: Sequence[JobRecord]) -> list[tuple[str, Markup]]:
    """(job, heat map) of every compressed job."""
    results = [(job.name, job.result) for job in jobs if job.result is not None]
    return [(name, _size_map(result)) for name, result in results if not result.plan.is_dense]


def selection_charts(selection: dict[str, Any]) -> list[Markup]:
    """The search for layers to remove: similarities over (start, length), and scores."""
    criterion = str(selection.get("criterion", "score"))
    removed = selection.get("removed") or []
    charts = []
    if entries := selection.get("map"):
        charts.append(_similarity_map(entries, removed))
    if scores := selection.get("scores"):
        gone = {True: ", removed", False: ""}
        points = [
            Point(layer, score, f"layer {layer}: {score:.6g}{gone[layer in removed]}")
            for layer, score in scores
        ]
        series = [Series(criterion, 0, points)]
        charts.append(
            line_chart(series, title=f"{criterion}: scores", x_label="layer or start", whole_x=True)
        )
    return charts


def _similarity_map(entries: Sequence[Any], removed: Sequence[int]) -> Markup:
    """Mean cosine by (length, start), the removed span or layers outlined."""
    chosen = {(layer, 1) for layer in removed}
    if removed and list(removed) == list(range(removed[0], removed[0] + len(removed))):
        chosen = {(removed[0], len(removed))}
    values = [value for _, _, value in entries]
    low, spread = min(values), max(values) - min(values) or 1
    tiles = {
        (str(length), start): Tile(
            (value - low) / spread,
            f"{length} layers from {start}: mean cosine {value:.6f}",
            (start, length) in chosen,
        )
        for start, length, value in entries
    }
    return heat_map(
        [str(length) for length in sorted({length for _, length, _ in entries}, reverse=True)],
        sorted({start for start, _, _ in entries}),
        tiles,
        title="similarity across spans (row: layers); outlined: removed",
        column_name="first layer of the span",
        ends=(f"{low:.3f}", f"{max(values):.3f}"),
    )


def _size_map(result: Result) -> Markup:
    dense = {shape.index: shape for shape in result.shapes}
    planned = result.planned.by_index
    blocks = {index: block for index, block in planned.items() if block.matrices}
    present = {name for block in blocks.values() for name in (*_factored(block), *block.widths)}
    if present & set(ATTENTION):
        present |= set(ATTENTION)
    rows = [name for name in ORDER if name in present]
    tiles = {
        (name, index): _size_tile(block, name, dense[index])
        for index, block in blocks.items()
        for name in rows
    }
    if result.plan.removed_layers:
        rows.insert(0, "layer")
        gone = result.plan.removed_layers
        inserted = {edit.start: edit for edit in result.plan.edits if isinstance(edit, Insert)}
        tiles |= {("layer", i): _layer_tile(i, inserted.get(i), i in gone) for i in dense}
    return heat_map(
        rows,
        range(len(dense)),
        tiles,
        title="",
        column_name="layer of the original model; colour: share of the dense weights kept",
        ends=("0", "1"),
    )


def _factored(block: BlockShape) -> list[str]:
    return [name for name, matrix in block.matrices.items() if matrix.rank is not None]


def _layer_tile(index: int, insert: Insert | None, gone: bool) -> Tile:
    if insert is not None:
        span = f"layers {insert.start} to {insert.stop - 1}"
        return Tile(0.5, f"layer {index}: {insert.kind} in place of {span}")
    return Tile(0.0 if gone else 1.0, f"layer {index}: {'removed' if gone else 'stays'}")


def _size_tile(block: BlockShape, name: str, dense: BlockShape) -> Tile:
    place = f"layer {block.index}, {name}: "
    if name in SPACES:
        if name not in block.widths:
            return Tile(1.0, place + "as it was")
        size, full = block.size(name), dense.size(name)
        return Tile(size / full, f"{place}{size} of {full}, {size / full:.1%}")
    if name not in block.matrices or (rank := block.matrices[name].rank) is None:
        return Tile(1.0, place + "dense")
    whole = dense.matrices[name]
    share = block.matrices[name].parameters / whole.parameters
    full = min(whole.out_features, whole.in_features)
    return Tile(share, f"{place}rank {rank} of {full}, {share:.1%} of the dense weights")
