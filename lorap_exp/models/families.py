"""Blocks of a decoder, whose matrices answer to the names q, k, v, o, gate, up and down.

Methods speak of these; where they are in an architecture is recognised by `structure`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lorap_exp.errors import LorapError
from lorap_exp.models.modeling_compressed import (
    CompressedModel,
    Projection,
    ReplacedLayer,
    add_branch,
    add_shortcuts,
    place,
    split_layer,
)
from lorap_exp.models.structure import Family, matrices_of, recognise, without_matrices
from lorap_exp.planning.shapes import BlockShape, MatrixShape


@dataclass(frozen=True)
class Block:
    """Decoder block `index` (its number in the original model); matrices answer to their names.

    A replacement that is no decoder layer has a family without matrices.
    """

    index: int
    module: nn.Module
    family: Family
    groups: int
    """Key-value heads that can be pruned, 0 where their number is fixed."""
    heads: int
    """Key-value heads of the original."""

    def has(self, place: str) -> bool:
        """Whether it is there: a matrix by its name, or one of the residual stream."""
        there = ("residual", "middle", "experts") if self.family.experts else ("residual", "middle")
        return place in self.family.matrices or place in there

    def linear(self, name: str) -> nn.Linear:
        """The projection, whatever its form.

        Raises:
            LorapError: the layer has none of this name.
        """
        if name not in self.family.matrices:
            raise LorapError(
                f"block {self.index} of '{self.family.model_type}' has no matrix '{name}', only "
                f"{', '.join(self.family.matrices) or 'none'}"
                + ("; its MLP is a mixture of experts" if self.family.experts else "")
            )
        return self.module.get_submodule(self.family.matrices[name])  # type: ignore[return-value]

    def weight(self, name: str) -> Tensor:
        """(out, in); of a projection in another form, computed anew."""
        return self.linear(name).weight

    def replace(self, name: str, linear: nn.Linear | Projection) -> None:
        """Put a projection in place of the one that is there."""
        place(self.module, self.family.matrices[name], linear)

    def returning(self, hidden: Tensor) -> Any:
        """What the layer returns when these are the hidden states behind it."""
        return (hidden, None) if self.family.returns_tuple else hidden

    @property
    def norms(self) -> tuple[nn.Module, nn.Module]:
        """The norm before attention and the one before the MLP; one and the same where both read
        it.

        Raises:
            LorapError: the layer has none in front.
        """
        if not self.family.norms:
            raise LorapError(f"'{self.family.model_type}' has no norms before attention and MLP")
        first, second = (self.module.get_submodule(path) for path in self.family.norms)
        return first, second

    @property
    def mlp(self) -> nn.Module:
        """The module of the MLP.

        Raises:
            LorapError: the layer holds the MLP's projections itself.
        """
        check_branches(self.family)
        assert self.family.mlp is not None
        return self.module.get_submodule(self.family.mlp)

    def add_shortcuts(self) -> None:
        """Uninitialised maps of the residual: `shortcut_attention` and `shortcut_mlp`.

        Raises:
            LorapError: the layer does not add what attention and MLP make of the normed stream.
        """
        check_shortcuts(self.family)
        add_shortcuts(self.module, self.family.layout())

    def slice(self, size: int) -> None:
        """Shortcuts, uninitialised, and norms without gain of `size` features, which divide by the
        mean over all original ones; the matrices are left.

        Raises:
            LorapError: see `add_shortcuts`.
        """
        for norm in {id(norm): norm for norm in self.norms}.values():
            slice_norm(norm, size)
        self.add_shortcuts()

    def add_branch(self, rank: int) -> None:
        """An uninitialised low-rank map parallel to the MLP: its `branch`.

        Raises:
            LorapError: the MLP is no module of its own.
        """
        check_branches(self.family)
        assert self.family.mlp is not None
        hidden = self.linear("o").out_features
        add_branch(self.module.get_submodule(self.family.mlp), hidden, rank)

    def per_expert(self) -> list[tuple[nn.Module, str]]:
        """Modules and their parameters with a row for each expert of a mixture: experts, router.

        Raises:
            LorapError: the block has no experts.
        """
        if self.family.experts is None or self.family.mlp is None:
            raise LorapError(f"'{self.family.model_type}' has no experts in block {self.index}")
        experts = self.module.get_submodule(self.family.experts)
        total = next(experts.parameters()).shape[0]
        beside = self.module.get_submodule(self.family.mlp).children()
        routers = [m for m in beside if m is not experts and _rows(m) == total]
        return [
            (module, name)
            for module in (experts, *routers)
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.shape[0] == total
        ]

    def shape(self) -> BlockShape:
        matrices = {}
        for name in self.family.matrices:
            linear = self.linear(name)
            outs, ins = linear.out_features, linear.in_features
            matrices[name] = MatrixShape(name, outs, ins, biased=linear.bias is not None)
        if self.family.experts is not None:
            stacked = [module.get_parameter(name) for module, name in self.per_expert()]
            each = sum(parameter[0].numel() for parameter in stacked)
            matrices["experts"] = MatrixShape("experts", len(stacked[0]), each)
        return BlockShape(self.index, matrices, self.groups, self.heads)


def slice_norm(norm: nn.Module, size: int) -> None:
    """A norm without gain over `size` features that divides by the mean over all original ones."""
    gain: Tensor = norm.weight  # type: ignore[assignment]
    constant = (len(gain) / size) ** 0.5
    norm.weight = nn.Parameter(gain.new_full((size,), constant), requires_grad=False)


def _rows(module: nn.Module) -> int:
    first = next(module.parameters(recurse=False), None)
    return 0 if first is None else first.shape[0]


def check_shortcuts(family: Family) -> None:
    """Raise unless shortcuts can be put in."""
    if family.residual != "sequential":
        raise LorapError(
            f"shortcuts need layers that add attention and MLP as they are, one after the other, "
            f"got '{family.model_type}', whose residual is {family.residual}"
        )


def check_branches(family: Family) -> None:
    """Raise unless a branch can be put beside the MLP."""
    if family.mlp is None:
        raise LorapError(
            f"branches need an MLP that is a module of its own, got '{family.model_type}', whose "
            f"layers hold its projections themselves"
        )


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The architecture without weights, fused projections apart: shapes only."""
    return split_fused(_empty(config))


def _empty(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def split_fused(model: PreTrainedModel) -> PreTrainedModel:
    """Give every projection a matrix of its own, in place: fused ones are split, transposed ones
    turned."""
    family = decoder_family(model)
    for layer in model.get_submodule(family.layers).children():
        if not isinstance(layer, ReplacedLayer):
            split_layer(layer, family.fused)
    return model


def family_of(config: PreTrainedConfig) -> Family:
    """The structure that a configuration stands for, dense or compressed.

    Raises:
        LorapError: it cannot be recognised.
    """
    if (layout := getattr(config, "layout", None)) is not None:
        return Family.from_layout(layout)
    return recognise(_empty(config))


def decoder_family(model: PreTrainedModel) -> Family:
    """The structure of a dense or a compressed model."""
    if isinstance(model, CompressedModel):
        return Family.from_layout(model.config.layout)
    return recognise(model)


def blocks_of(model: PreTrainedModel) -> list[Block]:
    """The blocks in order; those of a shortened model, while it is being compressed, under their
    original numbers."""
    family = decoder_family(model)
    layers = list(model.get_submodule(family.layers).children())
    heads = getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads
    groups = heads if family.reads_heads else 0
    numbers: Sequence[int] = range(len(layers))
    if isinstance(model, CompressedModel):
        numbers = model.config.original_layers or numbers
    return [
        Block(number, layer, _family_of_layer(layer, family), groups, heads)
        for number, layer in zip(numbers, layers, strict=True)
    ]


def _family_of_layer(layer: nn.Module, family: Family) -> Family:
    if isinstance(layer, ReplacedLayer):
        return without_matrices(family)
    matrices = matrices_of(layer, family)
    return family if matrices is family.matrices else replace(family, matrices=matrices)


def shapes_of(model: PreTrainedModel) -> list[BlockShape]:
    """The compressible shapes of a dense model."""
    return [block.shape() for block in blocks_of(model)]


def embedding_of(model: PreTrainedModel) -> nn.Embedding:
    """The token embedding."""
    return model.get_submodule(decoder_family(model).embedding)  # type: ignore[return-value]


def final_norm_of(model: PreTrainedModel) -> nn.Module | None:
    """The norm before the head, where there is one."""
    path = decoder_family(model).final_norm
    return None if path is None else model.get_submodule(path)


def head_of(model: PreTrainedModel) -> nn.Linear:
    """The output head; its weight is the embedding's where they are tied."""
    return model.get_submodule(decoder_family(model).head)  # type: ignore[return-value]
