"""What a plan changes, as settings of the compressed configuration."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from lorap_exp.models.checkpoint import layer_settings, shorten
from lorap_exp.models.families import family_of, meta_model, shapes_of
from lorap_exp.planning.plan import BlockPlan, Plan, Removal


def settings_of(plan: Plan, dense: PreTrainedConfig) -> dict[str, Any]:
    """Settings of `as_compressed` for a plan over the dense configuration."""
    return removal_settings(plan, dense) | {"compressed_modules": module_settings(plan, dense)}


def removal_settings(plan: Plan, dense: PreTrainedConfig) -> dict[str, Any]:
    """What removing layers changes: their number, lists by layer, what replaces them."""
    if not plan.removal.layers:
        return {}
    numbers = [block.index for block in plan.blocks]
    replaced = plan.removal.by_start
    modules = {
        str(position): {"kind": replaced[number].kind, "residual": replaced[number].residual}
        for position, number in enumerate(numbers)
        if number in replaced and not replaced[number].is_block
    }
    found: dict[str, Any] = {
        "stock": layer_settings(dense, numbers),
        "original_layers": numbers,
    }
    return found | ({"replaced_layers": modules} if modules else {})


def module_settings(plan: Plan, dense: PreTrainedConfig) -> dict[str, dict[str, int]]:
    """`compressed_modules`: what the plan changes, by module path."""
    found: dict[str, dict[str, int]] = {}
    family = family_of(dense)
    remaining = plan.removal.remaining(shapes_of(meta_model(dense)))
    for position, (block, before) in enumerate(zip(plan.blocks, remaining, strict=True)):
        for name, planned in block.shapes(before).items():
            matrix, form = before.matrices[name], {}
            if planned.out_features != matrix.out_features:
                form["out_features"] = planned.out_features
            if planned.in_features != matrix.in_features:
                form["in_features"] = planned.in_features
            if planned.rank is not None:
                form["rank"] = planned.rank
            if form:
                found[family.path(position, name)] = form
    return found


def cut(
    dense: PreTrainedModel, removal: Removal, replacements: Mapping[int, nn.Module]
) -> PreTrainedModel:
    """The model without the removed layers; the module of each replacement by its start."""
    blocks = removal.remaining(shapes_of(dense))
    plan = Plan(0.0, tuple(BlockPlan(block.index) for block in blocks), removal)
    keep: list[int | nn.Module] = [replacements.get(b.index, b.index) for b in blocks]
    return shorten(dense, keep, removal_settings(plan, dense.config))
