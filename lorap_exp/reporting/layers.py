"""What was done to each layer: the sizes of a plan as a heat map."""

from collections.abc import Sequence

from lorap_exp.planning.edits import Insert
from lorap_exp.planning.shapes import SPACES, BlockShape
from lorap_exp.reporting.drawing import Chart
from lorap_exp.reporting.jobs import JobRecord
from lorap_exp.reporting.result import Result
from lorap_exp.reporting.tiles import Tile, heat_map

ATTENTION = ("q", "k", "v", "o")
ORDER = (*ATTENTION, "gate", "up", "down", *SPACES)


def size_maps(jobs: Sequence[JobRecord]) -> list[tuple[str, Chart]]:
    """(job, heat map) of every job that changed a size."""
    results = [(job.name, job.result) for job in jobs if job.result is not None]
    return [
        (n, _size_map(result)) for n, result in results if result.planned.blocks != result.shapes
    ]


def _size_map(result: Result) -> Chart:
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
        column_name="layer of the original model",
        meaning="share kept",
        limits=(0, 1),
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
