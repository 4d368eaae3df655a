"""How many layers go, and how a span is divided between its replacements (arXiv 2403.19135)."""

from collections.abc import Sequence
from itertools import pairwise

from lorap_exp.planning.edits import Drop, Edit, Insert, Plan
from lorap_exp.planning.shapes import BlockShape, Shape


def divide(start: int, stop: int, kind: str, count: int, residual: bool) -> list[Edit]:
    """Layers [start, stop) go, with `count` replacements, each for an equal part of them.

    A part is one layer longer than another where the division leaves a remainder.
    """
    if kind == "none":
        return [Drop(tuple(range(start, stop)))]
    length = stop - start
    bounds = [start + length * part // count for part in range(count + 1)]
    return [Insert(first, last, kind, residual) for first, last in pairwise(bounds)]


def removed_parameters(edits: Sequence[Edit], shape: Shape) -> int:
    """Weights removed, net of what the replacements hold."""
    return shape.parameters - Plan(0.0, tuple(edits)).shape(shape).parameters


def span_length(net: int, kind: str, count: int) -> int:
    """Layers to remove for `net` layers fewer: each network but a linear map counts as a layer."""
    return net + (count if kind in ("ffn", "swiglu", "transformer") else 0)


def net_layers(
    blocks: Sequence[BlockShape],
    budget: float,
    kind: str,
    count: int,
    *,
    exceed: bool,
) -> int:
    """Net layers to remove so that about `budget` parameters go.

    Args:
        blocks: of the incoming model, all alike.
        budget: parameters to remove, net of the replacements.
        kind: of replacement, or none.
        count: number of replacements.
        exceed: choose the nearest number, the larger of two; otherwise the largest that stays
            within the budget.

    Raises:
        ValueError: not even one layer fits, or fewer layers would stay than the stack needs.
    """
    limit = len(blocks) - span_length(0, kind, count)
    if limit < 2:
        raise ValueError(
            f"{len(blocks)} layers are too few for {count} replacements of kind {kind}: one layer "
            f"must go beyond what they replace, and one must stay"
        )
    shape = Shape(tuple(blocks))
    first = blocks[0].index
    removed = [0]
    for net in range(1, limit):
        edits = divide(first, first + span_length(net, kind, count), kind, count, False)
        removed.append(removed_parameters(edits, shape))
    if budget > removed[-1] + blocks[0].parameters / 2:
        raise ValueError(
            f"at most {limit - 1} of {len(blocks)} layers can go, {removed[-1]} parameters, "
            f"got {budget:.0f}"
        )
    if exceed:
        best = min(range(limit), key=lambda net: (abs(removed[net] - budget), -net))
    else:
        best = max((net for net in range(limit) if removed[net] < budget + 1), default=0)
    if best == 0:
        raise ValueError(
            f"at least one of {len(blocks)} layers must go, but {budget:.0f} parameters of "
            f"{blocks[0].parameters} a layer are fewer than that"
        )
    return best
