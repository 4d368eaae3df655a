"""The steps of a method in order: how a configuration becomes a stack, and what may follow what."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from pydantic import ValidationError

from lorap_exp.errors import LorapError, explain, shown
from lorap_exp.methods.contract import Step
from lorap_exp.methods.targets import find_method_class
from lorap_exp.schema.method import MethodConfig


@dataclass(frozen=True)
class Stack:
    """The steps of a method, by the names that the configuration gives them."""

    steps: tuple[tuple[str, Step], ...]

    def groups(self) -> list[list[tuple[str, Step]]]:
        """Neighbours of reach "block" share one walk; every other step stands alone."""
        groups: list[list[tuple[str, Step]]] = []
        for name, step in self.steps:
            alone = step.reach == "model" or not groups or groups[-1][-1][1].reach == "model"
            if alone:
                groups.append([])
            groups[-1].append((name, step))
        return groups

    def at(self, ratio: float) -> "Stack":
        """What acts at a ratio: at 0 nothing is removed, and there is nothing to recover."""
        if ratio > 0:
            return self
        return Stack(tuple((name, step) for name, step in self.steps if step.final))

    @property
    def trains(self) -> bool:
        """Some step trains."""
        return any(step.trains for _, step in self.steps)

    @property
    def sizes(self) -> bool:
        """Some step of reach "block" changes sizes."""
        return any(step.sized for _, step in self.steps if step.reach == "block")


def build_stack(method: MethodConfig) -> Stack:
    """The stack that a configuration names; a null stage is left out.

    Raises:
        LorapError: a field that is unknown or out of range, two steps that set the size of one
            matrix, or an order that cannot work.
    """
    steps: list[tuple[str, Step]] = []
    owners: dict[str, str] = {}
    for name, settings in method.stages.items():
        if settings is None:
            continue
        step = build_step(name, settings)
        if steps and steps[-1][1].final:
            raise LorapError(f"method.stages: {steps[-1][0]} must come last, but {name} follows it")
        if steps and not _may_follow(step, steps[-1][1]):
            raise LorapError(
                f"method.stages: the recovery must come last, but {name} follows {steps[-1][0]}"
            )
        if step.removes_layers and steps:
            raise LorapError(
                f"method.stages: layers must be removed once and first, before sizes are planned "
                f"for them and their inputs change, but {name} follows {steps[-1][0]}"
            )
        for target in step.sized:
            if target in owners:
                raise LorapError(
                    f"method.stages: each matrix may have its size from one stage, but {target} is "
                    f"a target of {owners[target]} and of {name}"
                )
            owners[target] = name
        steps.append((name, step))
    return Stack(tuple(steps))


def _may_follow(step: Step, before: Step) -> bool:
    """Sizes are not changed behind a step that fits weights to them, nothing behind a training."""
    if before.reach == "block" or before.removes_layers or step.final:
        return True
    return step.reach == "model" and not before.trains


def build_step(name: str, settings: Mapping[str, Any]) -> Step:
    """One step from its class and fields.

    Raises:
        LorapError: no class, one that is no step, or a wrong field.
    """
    fields = {key: value for key, value in settings.items() if key != "_target_"}
    kind = find_method_class(settings.get("_target_"), Step, f"method.stages.{name}._target_")
    types = get_type_hints(kind)
    for field, value in fields.items():
        if isinstance(value, bool) and bool not in (types.get(field), *get_args(types.get(field))):
            raise LorapError(
                f"method.stages.{name}.{field} must not be true or false, got {shown(value)}"
            )
    try:
        step = kind(**fields)
    except ValidationError as error:
        raise LorapError(explain(error, f"method.stages.{name}")) from error
    return step
