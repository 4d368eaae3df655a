"""The law of every method: evidence moves parameters about, never their number."""

import re
from collections.abc import Callable
from dataclasses import replace
from math import lcm
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import get_class
from transformers import PreTrainedModel

from lorap_exp import pipeline
from lorap_exp.commands.catalogue import conf_folder
from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.methods.block_regression import BlockRegression
from lorap_exp.methods.contract import Step
from lorap_exp.methods.distillation import Distillation
from lorap_exp.methods.laco import LaCo
from lorap_exp.methods.lora import LoraRecovery
from lorap_exp.methods.planner import plan_stack
from lorap_exp.methods.stack import Stack, build_stack
from lorap_exp.methods.streamline.removal import LayerRemoval
from lorap_exp.models.counting import count_parameters
from lorap_exp.models.loading import load_config
from lorap_exp.planning.edits import Edit, Factor, Plan, Resize, Slice
from lorap_exp.planning.options import Option
from lorap_exp.planning.shapes import Shape
from lorap_exp.planning.stack import Budget, open_blocks
from lorap_exp.steps.prepare import budget_of
from tests.methods.stacks import compress, planned, rebuilt, shape_of, stack_of
from tests.methods.streamline import FAST

Make = Callable[..., Config]
Tiny = Callable[..., PreTrainedModel]
CONF = conf_folder()
METHODS = sorted({path.stem for path in (CONF / "method").glob("*.yaml")} - {"auto", "dense"})
SHAPES = {
    "multi_head": ({"kv_heads": 4}, (0, 0)),
    "grouped_query": ({"kv_heads": 2}, (0, 0)),
    "protected": ({"kv_heads": 2, "blocks": 8}, (1, 1)),
}
RATIOS = (0.17, 0.2, 0.25, 0.333, 0.41, 0.5, 0.58)
SPEND_ALL = {"lorap_plus", "flap"}
"""With evidence they may spend all that the ratio leaves; the plan without it rounds sizes down."""
REGRESSED = [
    f"method.stages.regression.{setting}"
    for setting in ("epochs=1", "validation_samples=2", "batch_size=2")
]
IDS = torch.arange(8 * 16).view(8, 16) % 200
TRAINED = [o for o in FAST if not o.startswith(("method=", "ratio=", "model."))]
DISTILLED = [
    f"method.stages.recovery.{setting}"
    for setting in ("text=embedded", "length=16", "tokens=64", "validation_samples=2")
] + ["method.stages.recovery.batch_size=2"]
RECOVERY = [
    f"method.stages.recovery.{setting}"
    for setting in (
        "text=embedded",
        "samples=12",
        "validation_samples=4",
        "cutoff=16",
        "batch_size=4",
        "max_steps=1",
    )
]


def classes_of(method: str) -> set[type[Step]]:
    """The steps of a method, read from its files: those it inherits, and those it adds."""
    raw = yaml.safe_load((CONF / "method" / f"{method}.yaml").read_text())
    stages = [stage for stage in raw.get("stages", {}).values() if stage]
    found = {get_class(stage["_target_"]) for stage in stages if "_target_" in stage}
    for entry in raw.get("defaults", []):
        if isinstance(entry, str):
            parent = entry.rpartition("/")[2]
            found |= classes_of(parent) if parent != "_self_" else set()
            continue
        for group, option in entry.items():
            if group.startswith("/stage@"):
                stage = yaml.safe_load((CONF / "stage" / f"{option}.yaml").read_text())
                found.add(get_class(stage["_target_"]))
    return found


BLOCKWISE = [name for name in METHODS if all(c.reach == "block" for c in classes_of(name))]


def protected(stack: Stack, protect: tuple[int, int]) -> tuple[int, int]:
    """Whole layers have a protection of their own; a sliced stream runs through every block."""
    possible = stack.sizes and not any(step.ends for _, step in stack.steps)
    return protect if possible else (0, 0)


def one_step(stack: Stack, shape: Shape, plan: Plan, protect: tuple[int, int]) -> int:
    """What rounding may lose: a unit of every size, two where a rule rounds twice.

    Heads carry their remainder from block to block; layers go whole.
    """
    if not stack.sizes:
        return shape.blocks[0].parameters // 2
    lost, heads = 0, 0
    for option, step in options_of(stack, open_blocks(shape, protect)):
        unit = option.per_unit * lcm(option.step, getattr(step, "round_to", 1))
        if option.name == "heads":
            heads = unit
        else:
            lost += 2 * unit
    priced = [step for _, step in stack.steps if step.options(shape, None)]
    larger = [] if priced else [one_larger(edit, stack) for edit in plan.edits]
    for edit, more in zip(plan.edits, larger, strict=False):
        lost += more.on(shape).parameters - edit.on(shape).parameters
    return lost + heads


def one_larger(edit: Edit, stack: Stack) -> Edit:
    """The next size, for steps that plan without options."""
    ((_, step),) = stack.steps
    match edit:
        case Factor(rank=int(rank)):
            return replace(edit, rank=rank + 1)
        case Resize() | Slice():
            return replace(edit, size=edit.size + getattr(step, "round_to", 1))
    return edit


def options_of(stack: Stack, shape: Shape) -> list[tuple[Option, Step]]:
    steps = [step for _, step in stack.steps if step.sized]
    return [(option, step) for step in steps for option in step.options(shape, None)]


@pytest.mark.parametrize("method", METHODS)
def test_the_plan_without_evidence_meets_the_ratio(tiny: Tiny, config: Make, method: str) -> None:
    """Or is refused, in one sentence, before any weight is read."""
    stack = stack_of(config, f"method={method}")
    planned_ratios = 0
    for sizes, protect in SHAPES.values():
        dense = shape_of(tiny(**sizes | {"blocks": 12}))
        asked = protected(stack, protect)
        for ratio in RATIOS:
            try:
                plan = plan_stack(stack, dense, Budget(ratio, protect=asked))
            except LorapError as error:
                assert "ratio" in str(error)
                continue
            planned_ratios += 1
            target = (1 - ratio) * dense.parameters
            lost = abs(plan.shape(dense).parameters - target)
            assert lost <= one_step(stack, dense, plan, asked), (ratio, sizes)
    assert planned_ratios > len(RATIOS)


@pytest.mark.parametrize("method", BLOCKWISE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ratio", [0.2, 0.35])
def test_what_is_carried_out_is_what_was_planned(
    tiny: Tiny, config: Make, method: str, shape: str, ratio: float
) -> None:
    """To one rounding step, never more; and the parameters of the rebuilt model are those."""
    sizes, protect = SHAPES[shape]
    stack = stack_of(config, f"method={method}")
    model, protect = tiny(**sizes), protected(stack, protect)
    dense = shape_of(model)
    blind = planned(stack, model, ratio, protect=protect)
    asked = blind.shape(dense).parameters
    done = compress(model, stack, ratio, IDS, protect=protect)
    carried = done.shape(dense).parameters
    least, most = asked - one_step(stack, dense, blind, protect), float(asked)
    if method in SPEND_ALL:  # a module of a small model steps by a share of it
        least, most = int(0.93 * asked), (1 - ratio) * dense.parameters
    assert least <= carried <= most
    assert count_parameters(rebuilt(model, done))["decoder"] == carried


@pytest.mark.parametrize("allocation", ["spectrum", "uniform"])
@pytest.mark.parametrize("protect", [(0, 0), (1, 0)])
def test_ranks_by_spectrum_keep_the_number(
    tiny: Tiny, config: Make, allocation: str, protect: tuple[int, int]
) -> None:
    stack = stack_of(config, "method=svd_all", f"method.stages.all.allocation={allocation}")
    model = tiny(blocks=3)
    dense = shape_of(model)
    asked = planned(stack, model, 0.35, protect=protect).shape(dense)
    done = compress(model, stack, 0.35, IDS, protect=protect).shape(dense)
    for one, other in zip(done.blocks, asked.blocks, strict=True):
        step = max(m.out_features + m.in_features for m in one.matrices.values())
        assert other.parameters - step <= one.parameters <= other.parameters
    assert (done == asked) == (allocation == "uniform")


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(BLOCKWISE)))
def test_a_job_ends_with_the_parameters_of_its_plan(
    tmp_path: Path, config: Make, method: str
) -> None:
    steps = classes_of(method)
    few = [
        *(TRAINED if LayerRemoval in steps else []),
        *(RECOVERY if LoraRecovery in steps else []),
        *(DISTILLED if Distillation in steps else []),
        *(["method.stages.layers.samples=4"] if LaCo in steps else []),
        *(REGRESSED if BlockRegression in steps else []),
    ]
    few += ["model.random.blocks=12", "evaluation.zero_shot=null"]
    cfg = config(f"method={method}", "ratio=0.2", *few)
    result = pipeline.run(cfg, tmp_path)
    dense = Shape(result.shapes)
    assert result.parameters["compressed"]["decoder"] == result.planned.parameters
    asked = plan_stack(build_stack(cfg.method), dense, budget_of(cfg, load_config(cfg.model)))
    planned_, carried = asked.shape(dense).parameters, result.planned.parameters
    if re.sub("_(distilled|refined)$", "", method) in SPEND_ALL:
        assert 0.93 * planned_ <= carried <= 0.8 * dense.parameters
    else:
        assert carried == planned_
