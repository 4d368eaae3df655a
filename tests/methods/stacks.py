"""A stack planned and applied to a model in memory, as a job does it, without a job."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorap_exp.calibration.survey import survey
from lorap_exp.calibration.walk import Walk
from lorap_exp.methods.contract import Stack
from lorap_exp.methods.engine import rewrite_blocks
from lorap_exp.methods.planner import plan_group, plan_stack
from lorap_exp.models.checkpoint import as_compressed
from lorap_exp.models.families import shapes_of
from lorap_exp.models.layout import settings_of
from lorap_exp.models.source import Source
from lorap_exp.planning.edits import Plan
from lorap_exp.planning.shapes import Shape
from lorap_exp.planning.stack import Budget


def no_bars(label: str, unit: str) -> Any:
    def through(items: Iterable[Any]) -> Iterable[Any]:
        return items

    return through


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
    **budget: Any,
) -> Plan:
    """Rewrite a model by a stack of one group of block steps; the plan as carried out."""
    how = how or Walk(batch_size=4)
    (group,) = stack.groups()
    dense, asked, before = shape_of(model), Budget(ratio, **budget), Plan(ratio)
    edits = plan_group(stack, 0, dense, before, asked, seen=None)
    source = Source(model)
    probes = [probe for name, step in group for probe in step.survey(dense, edits[name])]
    if probes:
        seen = survey(source, ids, probes, how, sharing=None, bars=no_bars)
        edits = plan_group(stack, 0, dense, before, asked, seen=seen)
    done = rewrite_blocks(source, group, edits, dense, ids=ids, how=how, sharing=None, bars=no_bars)
    return before + done


def rebuilt(model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """The compressed architecture of a rewritten model."""
    return as_compressed(model, settings_of(plan, model.config), model.config)
