"""The plan of a stack: first without evidence, as many parameters as asked; then with it."""

from collections.abc import Mapping, Sequence
from functools import reduce

from lorap_exp.calibration.evidence import Survey
from lorap_exp.errors import LorapError
from lorap_exp.methods.contract import Step
from lorap_exp.methods.stack import Stack
from lorap_exp.planning.edits import Edit, Plan, Slice
from lorap_exp.planning.shapes import Shape
from lorap_exp.planning.spans import removed_parameters
from lorap_exp.planning.stack import Budget, open_blocks, plan_blocks

Group = Sequence[tuple[str, Step]]
Edits = Mapping[str, Sequence[Edit]]
"""The edits of each step, by its name."""


def plan_stack(stack: Stack, dense: Shape, budget: Budget) -> Plan:
    """The plan of a whole stack before anything is measured.

    Raises:
        LorapError: a ratio or a number of layers that cannot be had.
    """
    plan = Plan(budget.ratio)
    for number in range(len(stack.groups())):
        for edits in plan_group(stack, number, dense, plan, budget, seen=None).values():
            plan += edits
    if budget.ratio > 0 and plan.shape(dense) == dense and not stack.sizes and not _removes(stack):
        why = "when no stage has a target" if stack.steps else "for a method without stages"
        raise LorapError(f"ratio must be 0 {why}, got {budget.ratio}")
    return plan


def plan_group(
    stack: Stack,
    number: int,
    dense: Shape,
    before: Plan,
    budget: Budget,
    *,
    seen: Survey | None,
) -> dict[str, list[Edit]]:
    """The edits of each step of one group.

    Args:
        stack: the method.
        number: of the group.
        dense: shape of the original model.
        before: what earlier groups did.
        budget: what is asked.
        seen: what was measured of the model as the group gets it.

    Raises:
        LorapError: a ratio or a number of layers that cannot be had.
    """
    group = stack.groups()[number]
    shape = before.shape(dense)
    try:
        if group[0][1].removes_layers:
            ((name, step),) = group
            return {name: _plan_removal(stack, name, step, dense, budget, seen=seen)}
        sizers = [(name, step) for name, step in group if step.sized]
        edits: dict[str, list[Edit]] = {name: [] for name, _ in group}
        if sizers and budget.ratio > 0:
            open_ = open_blocks(shape, budget.protect)
            edits = {name: step.additions(open_, seen) for name, step in group}
            added = removed_parameters([e for own in edits.values() for e in own], shape)
            steps = [step for _, step in sizers]
            found = plan_blocks(steps, dense, shape, budget, seen, added=-added)
            for (name, _), own in zip(sizers, found, strict=True):
                edits[name] = [*own, *edits[name]]
                if any(budget.protect) and any(isinstance(edit, Slice) for edit in own):
                    raise ValueError(
                        f"method.protect must be [0, 0] when the residual stream is sliced, which "
                        f"runs through every block, got {list(budget.protect)}"
                    )
        planned = reduce(Plan.__add__, edits.values(), before).shape(dense)
        for name, step in group:
            edits[name] += step.forms(planned)
    except ValueError as error:
        raise LorapError(str(error)) from error
    return edits


def _plan_removal(
    stack: Stack, name: str, step: Step, dense: Shape, budget: Budget, *, seen: Survey | None
) -> list[Edit]:
    """Layers for their share of the ratio; alone they come as near to it as whole layers can."""
    fixed = getattr(step, "num_layers", None)
    if budget.ratio == 0:
        if fixed is not None:
            raise LorapError(
                f"ratio must be above 0 when method.stages.{name}.num_layers is set, got 0 and "
                f"{fixed}"
            )
        return []
    alone = not stack.sizes
    if alone and any(budget.protect):
        raise LorapError(
            f"method.protect must be [0, 0] when layers are only removed, got {budget.protect}; "
            f"method.stages.{name}.protect keeps layers"
        )
    share = 1.0 if alone else float(getattr(step, "share", 1.0))
    ratio = budget.ratio * share * (budget.whole or dense.parameters) / dense.parameters
    try:
        return step.plan(dense, ratio, seen, alone)
    except ValueError as error:
        raise LorapError(f"ratio {budget.ratio} cannot be planned: {error}") from error


def _removes(stack: Stack) -> bool:
    return any(step.removes_layers for _, step in stack.steps)
