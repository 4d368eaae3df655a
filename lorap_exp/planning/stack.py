"""One ratio for a stack of steps: how many parameters each takes off what it may change.

A query without side effects: shapes and steps in, edits out. What was measured of the model may
decide which parameters go, never how many.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lorap_exp.planning.edits import Edit
from lorap_exp.planning.options import Option, edits_of
from lorap_exp.planning.rules import Rule
from lorap_exp.planning.shapes import BlockShape, Shape


class Sizer(Protocol):
    """What planning knows of a step that changes sizes."""

    @property
    def sized(self) -> Sequence[str]:
        """Vocabulary names of the matrices whose sizes the step sets."""
        ...

    def options(self, shape: Shape, seen: Any) -> list[Option]: ...

    def plan(self, shape: Shape, ratio: float, seen: Any, alone: bool = True) -> list[Edit]: ...


@dataclass(frozen=True)
class Budget:
    """What is asked of a method.

    Attributes:
        ratio: share of the weights to remove, in [0, 1).
        whole: count the ratio over this many parameters (the whole model); None counts over the
            targeted matrices, as LoRAP does, and over all matrices when layers are removed.
        protect: number of first and last blocks that stay dense; the others pay for them.
        rule: one rule over the options of all steps; None leaves each step its own.
    """

    ratio: float
    whole: int | None = None
    protect: tuple[int, int] = (0, 0)
    rule: Rule | None = None


def plan_blocks(
    steps: Sequence[Sizer],
    dense: Shape,
    shape: Shape,
    budget: Budget,
    seen: Any,
    *,
    added: int = 0,
) -> list[list[Edit]]:
    """The edits of each step, which together take off what is left of the ratio.

    Args:
        steps: that change sizes; no two of them set the size of one matrix.
        dense: of the original model.
        shape: of the incoming model, from which layers may be gone.
        budget: what is asked.
        seen: what was measured of the incoming model, or None.
        added: parameters that other edits add.

    Raises:
        ValueError: a ratio that no step can reach.
    """
    if budget.ratio == 0:
        return [[] for _ in steps]
    if not steps:
        raise ValueError(f"ratio must be 0 for a method without stages, got {budget.ratio}")
    open_ = open_blocks(shape, budget.protect)
    targets = {name for step in steps for name in step.sized}
    targeted = _targeted(open_.blocks, targets)
    if not targeted:
        raise ValueError(
            f"ratio must be 0 when no stage has a target in this model, got {budget.ratio}"
        )
    gone = dense.parameters - shape.parameters
    counted = budget.whole or (
        dense.parameters if shape != dense else _targeted(dense.blocks, targets)
    )
    exact = counted == targeted and not gone and not added
    ratio = budget.ratio if exact else (budget.ratio * counted - gone + added) / targeted
    if ratio < 0:
        raise ValueError(
            f"ratio must be at least {gone / counted:.4f}, the share that the removed layers take, "
            f"got {budget.ratio}"
        )
    if not ratio < 1:
        raise ValueError(
            f"ratio must leave something of the {targeted} weights that may change, "
            f"got {budget.ratio} of {counted}"
        )
    if gone > 0 and ratio * targeted < 1:
        return [[] for _ in steps]
    try:
        if budget.rule is None:
            return [step.plan(open_, ratio, seen) for step in steps]
        return _jointly(budget.rule, [step.options(open_, seen) for step in steps], ratio)
    except ValueError as error:
        raise ValueError(f"ratio {budget.ratio} cannot be planned: {error}") from error


def _jointly(rule: Rule, options: Sequence[list[Option]], ratio: float) -> list[list[Edit]]:
    """One rule over the options of all steps."""
    sizes = rule.choose([option for own in options for option in own], ratio)
    edits = []
    for own in options:
        edits.append(edits_of(own, sizes[: len(own)]))
        sizes = sizes[len(own) :]
    return edits


def open_blocks(shape: Shape, protect: tuple[int, int]) -> Shape:
    """The blocks with matrices that are not protected.

    Raises:
        ValueError: none is left.
    """
    blocks = [block for block in shape.blocks if block.matrices]
    if sum(protect) >= len(blocks):
        raise ValueError(
            f"method.protect must leave at least one of the {len(blocks)} blocks, got {protect}"
        )
    return Shape(tuple(blocks[protect[0] : len(blocks) - protect[1]]))


def _targeted(blocks: Sequence[BlockShape], targets: set[str]) -> int:
    matrices = [m for block in blocks for n, m in block.matrices.items() if n in targets]
    return sum(matrix.parameters for matrix in matrices)
