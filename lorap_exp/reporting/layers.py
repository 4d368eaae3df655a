"""What was done to each layer, as charts: the sizes of a plan, and a search over layers."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from lorap_exp.planning.plan import BlockPlan, BlockShape, MatrixShape
from lorap_exp.reporting.charts import Tile, heat_map, scale
from lorap_exp.reporting.jobs import JobRecord
from lorap_exp.reporting.result import Result
from lorap_exp.reporting.svg import Point, Series, line_chart

ATTENTION = ("q", "k", "v", "o")
ORDER = (*ATTENTION, "gate", "up", "down", "mlp", "heads")


def size_maps(jobs: Sequence[JobRecord]) -> list[tuple[str, Markup, str]]:
    """(job, heat map, meaning of the colour) of every compressed job."""
    compressed = [(j.name, j.result) for j in jobs if j.result and not j.result.plan.is_dense]
    dense = dense_shapes(jobs)
    largest: dict[str, int] = {}
    for _, result in compressed:
        for block in result.plan.blocks:
            for name, size in (*block.ranks.items(), *block.widths.items()):
                largest[name] = max(size, largest.get(name, 1))
    found = []
    for job, result in compressed:
        known = dense.get(_model(result))
        meaning = (
            "colour: share of the dense weights kept"
            if known
            else "colour: size against the largest of this matrix in the report"
        )
        found.append((job, _size_map(result, known, largest), meaning))
    return found


def size_scale() -> Markup:
    """What the colours of a size map mean."""
    return scale("0", "1 (dense)")


def dense_shapes(jobs: Sequence[JobRecord]) -> dict[str, BlockShape]:
    """A dense block by model, where a job's folder still holds a model of unchanged dimensions."""
    found: dict[str, BlockShape] = {}
    for job in jobs:
        config = job.read("model/config.json")
        if job.result is None or config is None or _model(job.result) in found:
            continue
        if (shape := _shape(config, job.result)) is not None:
            found[_model(job.result)] = shape
    return found


def selection_charts(selection: dict[str, Any]) -> list[Markup]:
    """The search for layers to remove: the map over (start, length), and single scores."""
    metric = str(selection.get("metric", "score"))
    removed = selection.get("removed") or []
    charts = []
    if entries := selection.get("map"):
        chosen = (min(removed), len(removed)) if removed else None
        values = [value for _, _, value in entries]
        low, spread = min(values), max(values) - min(values) or 1
        tiles = {
            (str(length), start): Tile(
                (value - low) / spread,
                f"{length} layers from {start}: {metric} {value:.6g}",
                (start, length) == chosen,
            )
            for start, length, value in entries
        }
        rows = sorted({str(length) for _, length, _ in entries}, key=int)
        columns = sorted({start for start, _, _ in entries})
        title = f"{metric} of every span (rows: number of layers)"
        charts.append(heat_map(rows, columns, tiles, title, "first layer of the span"))
        charts.append(scale(f"{low:.4g}", f"{max(values):.4g}"))
    if scores := selection.get("scores"):
        points = [Point(layer, score, f"layer {layer}: {score:.6g}") for layer, score in scores]
        series = [Series(metric, 0, points)]
        charts.append(line_chart(series, title=f"{metric} by layer", x_label="layer"))
    return charts


def _size_map(result: Result, dense: BlockShape | None, largest: dict[str, int]) -> Markup:
    blocks = {block.index: block for block in result.plan.blocks}
    present = {n for block in blocks.values() for n in (*block.ranks, *block.widths)}
    if present & set(ATTENTION):
        present |= set(ATTENTION)
    rows = [name for name in ORDER if name in present]
    tiles = {
        (name, index): _size_tile(block, name, dense, largest)
        for index, block in blocks.items()
        for name in rows
    }
    return heat_map(rows, range(max(blocks) + 1), tiles, "", "layer of the original model")


def _size_tile(
    block: BlockPlan, name: str, dense: BlockShape | None, largest: dict[str, int]
) -> Tile:
    place = f"layer {block.index}, {name}: "
    rank, width = block.ranks.get(name), block.widths.get(name)
    if rank is None and width is None:
        return Tile(1.0, place + "dense")
    size, kind = (rank, "rank") if rank is not None else (width, "width")
    assert size is not None
    if dense is None:
        return Tile(size / largest[name], f"{place}{kind} {size}")
    if width is not None:
        full = dense.groups if name == "heads" else dense.matrices["up"].out_features
        return Tile(width / full, f"{place}width {width} of {full}, {width / full:.1%}")
    whole = dense.matrices[name]
    share = block.shapes(dense)[name].parameters / whole.parameters
    full = min(whole.out_features, whole.in_features)
    return Tile(share, f"{place}rank {rank} of {full}, {share:.1%} of the dense weights")


def _shape(config: dict[str, Any], result: Result) -> BlockShape | None:
    """A block by the names that transformers' configurations share; None where the counts of the
    dense model say otherwise. Biases may be counted beside the weights."""
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    inner = config.get("intermediate_size") or config.get("ffn_dim")
    if not hidden or not heads or not inner:
        return None
    groups = config.get("num_key_value_heads") or heads
    size = config.get("head_dim") or hidden // heads
    sizes = {"q": (heads * size, hidden), "k": (groups * size, hidden)}
    sizes |= {"v": sizes["k"], "o": (hidden, heads * size)}
    sizes |= {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    counted = result.parameters["dense"]["decoder"]
    for without in ((), ("gate",)):
        matrices = {n: MatrixShape(n, *s) for n, s in sizes.items() if n not in without}
        shape = BlockShape(0, matrices, groups)
        if 0 <= counted - shape.parameters * len(result.plan.blocks) <= 0.02 * counted:
            return shape
    return None


def _model(result: Result) -> str:
    return str(result.config["model"]["name"])
