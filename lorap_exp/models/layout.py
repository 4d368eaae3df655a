"""From a plan to the settings of a compressed configuration: what the saved model looks like."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from lorap_exp.models.experts import experts_setting, keep_experts
from lorap_exp.models.families import Block, family_of, meta_model, shapes_of
from lorap_exp.models.forms import layer_settings, shorten
from lorap_exp.models.modeling_compressed import reshape_linear
from lorap_exp.models.structure import Family
from lorap_exp.planning.edits import Edit, Plan
from lorap_exp.planning.shapes import BlockShape, MatrixShape, Shape

SCATTERED = {"q": ("query",), "k": ("query",), "v": ("value", "values")}
"""Matrices that compute some features of their heads, and the spaces that say how many."""


def dense_shape(config: PreTrainedConfig) -> Shape:
    """The shape of the original model; no weight is read."""
    return Shape(tuple(shapes_of(meta_model(config))))


def settings_of(plan: Plan, config: PreTrainedConfig) -> dict[str, Any]:
    """Settings of the compressed configuration of a plan over the original configuration.

    Keys are those of `models.forms.compressed_config`; what does not change is left out.
    """
    dense, family = dense_shape(config), family_of(config)
    shape = plan.shape(dense)
    settings: dict[str, Any] = {"compressed_modules": {}}
    stock: dict[str, Any] = {}
    branches: dict[str, int] = {}
    replaced: dict[str, Any] = {}
    for position, block in enumerate(shape.blocks):
        if block.kind is not None and not block.matrices:
            replaced[str(position)] = {"kind": block.kind, "residual": block.residual}
            continue
        before = dense.by_index[block.index]
        if "residual" in block.widths:
            before = before.resized("residual", block.widths["residual"])
        settings["compressed_modules"] |= _modules(position, block, before, family)
        if "experts" in block.widths:
            stock |= experts_setting(config, block.widths["experts"])
        if block.branch is not None:
            branches[str(position)] = block.branch
    numbers = [block.index for block in shape.blocks]
    if len(numbers) < len(dense.blocks) or plan.removed_layers:
        stock |= layer_settings(config, numbers)
        settings["original_layers"] = numbers
    if any("residual" in block.widths for block in shape.blocks):
        stock |= {"hidden_size": shape.blocks[0].size("residual")}
        stock |= {"head_dim": dense.blocks[0].size("value")}
        stock |= {"tie_word_embeddings": False}
        settings["shortcuts"] = True
    given = {"stock": stock, "branches": branches, "replaced_layers": replaced}
    return settings | {name: value for name, value in given.items() if value}


def _modules(
    position: int, block: BlockShape, before: BlockShape, family: Family
) -> dict[str, dict[str, Any]]:
    """`compressed_modules` of one block."""
    found = {}
    for name in family.matrices:
        changes = _changes(name, block, block.matrices[name], before.matrices[name])
        if changes:
            found[family.path(position, name)] = changes
    return found


def _changes(
    name: str, block: BlockShape, matrix: MatrixShape, dense: MatrixShape
) -> dict[str, Any]:
    shape: dict[str, Any] = {}
    if matrix.out_features != dense.out_features:
        narrow = any(space in block.widths for space in SCATTERED.get(name, ()))
        shape["scatter" if narrow else "out_features"] = matrix.out_features
    if matrix.in_features != dense.in_features:
        narrow = name == "o" and any(space in block.widths for space in SCATTERED["v"])
        shape["gather" if narrow else "in_features"] = matrix.in_features
    if matrix.rank is not None:
        shape["rank"] = matrix.rank
        if matrix.form != "pair":
            shape["form"] = matrix.form
    if matrix.bias:
        shape["bias"] = True
    return shape


def give_form(block: Block, edits: Sequence[Edit]) -> None:
    """Modules of the sizes that a block has after its edits; weights are left to be put in."""
    before = block.shape()
    after = Plan(0.0, tuple(edits)).shape(Shape((before,))).blocks[0]
    if "residual" in after.widths:
        block.slice(after.widths["residual"])
    if "experts" in after.widths:
        keep_experts(block, range(after.widths["experts"]))
    for name in block.family.matrices:
        if changes := _changes(name, after, after.matrices[name], before.matrices[name]):
            block.replace(name, reshape_linear(block.linear(name), **changes))


def shortened(
    model: PreTrainedModel, edits: Sequence[Edit], modules: Mapping[int, nn.Module]
) -> PreTrainedModel:
    """A model without some layers, as a compressed architecture; weights are shared.

    Args:
        model: original.
        edits: which layers go, and what stands in their place.
        modules: the module of each replacement, by its start.
    """
    plan = Plan(0.0, tuple(edits))
    shape = plan.shape(Shape(tuple(shapes_of(model))))
    keep = [modules.get(block.index, block.index) for block in shape.blocks]
    return shorten(model, keep, settings_of(plan, model.config))
