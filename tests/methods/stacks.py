"""A stack planned and applied to a model in memory, as a job does it, without a job."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorap_exp.calibration.evidence import Sharing
from lorap_exp.calibration.survey import survey
from lorap_exp.calibration.walk import Walk
from lorap_exp.config import Config
from lorap_exp.methods.contract import Step, Whole
from lorap_exp.methods.engine import rewrite_blocks
from lorap_exp.methods.planner import plan_group, plan_stack
from lorap_exp.methods.stack import Stack, build_stack
from lorap_exp.models.families import shapes_of
from lorap_exp.models.forms import as_compressed
from lorap_exp.models.layout import settings_of
from lorap_exp.models.source import Source
from lorap_exp.planning.edits import Edit, Plan
from lorap_exp.planning.shapes import Shape
from lorap_exp.planning.stack import Budget


def no_bars(label: str, unit: str) -> Any:
    def through(items: Iterable[Any]) -> Iterable[Any]:
        return items

    return through


def cutting(label: str, unit: str = "it") -> Callable[[Iterable[Any]], Iterable[Any]]:
    """Progress bars of a job; that of a training is interrupted on its way."""
    last = {"recovery": 5, "regression": 1}.get(label)

    def wrap(items: Iterable[Any]) -> Iterator[Any]:
        for number, item in enumerate(items):
            if number == last:
                raise KeyboardInterrupt
            yield item

    return wrap


def stack_of(config: Callable[..., Config], *overrides: str) -> Stack:
    """The stack that a command line asks for."""
    return build_stack(config(*overrides).method)


def step_of(stack: Stack, name: str) -> Step:
    """One step by the name that the configuration gives it."""
    return dict(stack.steps)[name]


def shape_of(model: PreTrainedModel) -> Shape:
    return Shape(tuple(shapes_of(model)))


def planned(stack: Stack, model: PreTrainedModel, ratio: float, **budget: Any) -> Plan:
    return plan_stack(stack, shape_of(model), Budget(ratio, **budget))


@torch.no_grad()
def compress(
    model: PreTrainedModel,
    stack: Stack,
    ratio: float,
    ids: Tensor,
    how: Walk | None = None,
    *,
    sharing: Sharing | None = None,
    **budget: Any,
) -> Plan:
    """Rewrite a model by a stack of one group of block steps; the plan as carried out."""
    how = how or Walk(batch_size=4)
    (group,) = stack.groups()
    dense, asked, before = shape_of(model), Budget(ratio, **budget), Plan(ratio)
    edits = plan_group(stack, 0, dense, before, asked, seen=None)
    source, seen = Source(model), None
    probes = [probe for name, step in group for probe in step.survey(dense, edits[name])]
    if probes:
        seen = survey(source, ids, probes, how, sharing=sharing, bars=no_bars)
        edits = plan_group(stack, 0, dense, before, asked, seen=seen)
    done = rewrite_blocks(
        source, group, edits, dense, ids=ids, how=how, sharing=sharing, bars=no_bars, seen=seen
    )
    return before + done


def rewrite_whole(
    step: Step, model: PreTrainedModel, edits: Sequence[Edit], ids: Tensor, folder: Path
) -> Whole:
    """What a step of reach "model" makes of a model."""
    part = whole(model, ids, folder)
    step.apply(part, edits, None, {})
    return part


def whole(
    model: PreTrainedModel,
    ids: Tensor,
    folder: Path,
    original: PreTrainedModel | None = None,
    bars: Any = no_bars,
) -> Whole:
    """What a step of reach "model" is given; the original is the model itself by default."""
    return Whole(
        lambda: Source(model),
        calibration=ids,
        how=Walk(4),
        read=None,
        original=lambda: Source(original or model),
        folder=folder,
        bars=bars,
    )


def rebuilt(model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """The compressed architecture of a rewritten model."""
    return as_compressed(model, settings_of(plan, model.config), model.config)
