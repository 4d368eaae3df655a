"""How many layers go, and how a span is divided between its replacements (arXiv 2403.19135)."""

from collections.abc import Sequence
from itertools import pairwise

from lorap_exp.planning.plan import BlockShape, Removal, Replacement


def divide(start: int, stop: int, kind: str, count: int, residual: bool) -> Removal:
    """Removal of layers [start, stop) with `count` replacements, each for an equal part of them.

    A part is one layer longer than another where the division leaves a remainder.
    """
    if kind == "none":
        return Removal(tuple(range(start, stop)))
    length = stop - start
    bounds = [start + length * part // count for part in range(count + 1)]
    parts = [Replacement(first, last, kind, residual) for first, last in pairwise(bounds)]
    return Removal(tuple(range(start, stop)), tuple(parts))


def span_length(net: int, kind: str, count: int) -> int:
    """Layers to remove for `net` layers fewer: each network but a linear map counts as a layer."""
    return net + (count if kind in ("ffn", "swiglu", "transformer") else 0)


def net_layers(
    shapes: Sequence[BlockShape],
    budget: float,
    kind: str,
    count: int,
    *,
    exceed: bool,
) -> int:
    """Net layers to remove so that about `budget` parameters go.

    Args:
        shapes: of the dense blocks, all alike.
        budget: parameters to remove, net of the replacements.
        kind: of replacement, or none.
        count: number of replacements.
        exceed: choose the nearest number, the larger of two; otherwise the largest that stays
            within the budget.

    Raises:
        ValueError: not even one layer fits, or fewer layers would stay than the stack needs.
    """
    limit = len(shapes) - span_length(0, kind, count)
    if limit < 2:
        raise ValueError(
            f"{len(shapes)} layers are too few for {count} replacements of kind {kind}: one layer "
            f"must go beyond what they replace, and one must stay"
        )
    removed = []
    for net in range(limit):
        removal = divide(0, span_length(net, kind, count), kind, count, False)
        removed.append(removal.parameters(shapes))
    if budget > removed[-1] + shapes[0].parameters / 2:
        raise ValueError(
            f"at most {limit - 1} of {len(shapes)} layers can go, {removed[-1]} parameters, "
            f"got {budget:.0f}"
        )
    if exceed:
        best = min(range(limit), key=lambda net: (abs(removed[net] - budget), -net))
    else:
        best = max((net for net in range(limit) if removed[net] < budget + 1), default=0)
    if best == 0:
        raise ValueError(
            f"at least one of {len(shapes)} layers must go, but {budget:.0f} parameters of "
            f"{shapes[0].parameters} a layer are fewer than that"
        )
    return best
