"""Sizes of a decoder: matrices that read one space and write another, blocks, the whole.

A space is where activations live: the residual stream, the MLP's intermediate channels, the heads.
Pruning is resizing a space, so the matrices on both sides of it change together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Space:
    """The matrices whose rows (`writers`) and whose columns (`readers`) belong to a space."""

    writers: tuple[str, ...]
    readers: tuple[str, ...]

    @property
    def matrices(self) -> tuple[str, ...]:
        return (*self.writers, *self.readers)


SPACES = {
    "ffn": Space(("gate", "up"), ("down",)),
    "heads": Space(("q", "k", "v"), ("o",)),
    "query": Space(("q", "k"), ()),
    "value": Space(("v",), ("o",)),
    "values": Space(("v",), ("o",)),
    "experts": Space(("experts",), ()),
    "residual": Space(("o", "down"), ("q", "k", "v", "gate", "up")),
}
"""ffn: intermediate channels. heads: key-value heads, each with the query heads that read it.
query: features of each query and key head. value: features of each value head; values: of all value
heads together, unequal ones. experts: of a mixture. residual: the hidden size."""


@dataclass(frozen=True)
class MatrixShape:
    """A weight of a decoder block under its vocabulary name (q, k, v, o, gate, up, down).

    The experts of a mixture count as one matrix `experts` with a row for each expert: all that one
    has, and its row of the router.

    `biased` says that the original has a bias, `bias` that one was added. `form` says how a
    factorised matrix is stored: "pair", rank * (out + in) numbers, or "pivoted", rank * (out + in -
    rank) (PIFA, arXiv 2501.19090).
    """

    name: str
    out_features: int
    in_features: int
    rank: int | None = None
    form: str = "pair"
    bias: bool = False
    biased: bool = False

    @property
    def parameters(self) -> int:
        """Numbers stored for the matrix and for a bias that was added to it."""
        added = self.out_features if self.bias else 0
        if self.rank is None:
            return self.out_features * self.in_features + added
        return factor_parameters(self.out_features, self.in_features, self.rank, self.form) + added

    @property
    def row_lengths(self) -> list[int]:
        """Numbers in a row of what is stored: the inputs, and of factors the rank too."""
        if self.name == "experts":
            return []
        return [self.in_features] if self.rank is None else [self.in_features, self.rank]


def factor_parameters(out_features: int, in_features: int, rank: int, form: str) -> int:
    """Numbers stored for a matrix of a rank in a form."""
    return rank * (out_features + in_features - (rank if form == "pivoted" else 0))


@dataclass(frozen=True)
class BlockShape:
    """The compressible weights of decoder block `index` (its number in the original model).

    Norms, and biases that the original has, are not counted.

    Attributes:
        groups: key-value heads, the units in which attention can be pruned; 0 where the family has
            a fixed number of heads.
        heads: key-value heads, however fixed; 0 says as many as groups.
        widths: size of each space that was resized, by its name.
        kind: what stands here in place of a span of layers; None for a layer of the original.
        extra: parameters that belong to no matrix: a replacement network, a branch, shortcuts.
        branch: rank of a linear branch beside the MLP; None without one.
    """

    index: int
    matrices: Mapping[str, MatrixShape]
    groups: int = 1
    heads: int = 0
    widths: Mapping[str, int] = field(default_factory=dict)
    kind: str | None = None
    residual: bool = False
    extra: int = 0
    branch: int | None = None

    @property
    def parameters(self) -> int:
        return sum(matrix.parameters for matrix in self.matrices.values()) + self.extra

    @property
    def value_heads(self) -> int:
        """Key-value heads, whether or not they can be pruned."""
        return self.heads or self.groups

    @property
    def hidden(self) -> int:
        """Features of the residual stream as the block reads it."""
        return self.matrices["q"].in_features

    def size(self, space: str) -> int:
        """Units of a space: channels, key-value heads, features of a head, hidden features.

        Raises:
            ValueError: the block has no such space.
        """
        if space in self.widths:
            return self.widths[space]
        if space == "ffn":
            if "down" not in self.matrices:
                raise ValueError(
                    f"block {self.index} has no channels that can be pruned: its MLP is a mixture "
                    f"of experts; a method of attention alone works, or method.stages.mlp=null"
                )
            return self.matrices["down"].in_features
        if space == "heads":
            return self.groups
        if space == "residual":
            return self.hidden
        if space in ("values", "experts"):
            return self.matrices[SPACES[space].writers[0]].out_features
        return self.matrices["v" if space == "value" else "k"].out_features // self.value_heads

    def unit_parameters(self, space: str) -> int:
        """Weights that go with one unit of a space."""
        size, named = self.size(space), SPACES[space]
        present = [self.matrices[name] for name in named.matrices if name in self.matrices]
        return sum(matrix.out_features * matrix.in_features for matrix in present) // size

    def resized(self, space: str, size: int) -> "BlockShape":
        """The block with another size of a space."""
        full, named = self.size(space), SPACES[space]
        changed = dict(self.matrices)
        for name in named.matrices:
            if (matrix := changed.get(name)) is None:
                continue
            if name in named.writers:
                outs = matrix.out_features * size // full
                changed[name] = replace(matrix, out_features=outs)
            else:
                changed[name] = replace(matrix, in_features=matrix.in_features * size // full)
        widths = {**self.widths, space: size}
        found = replace(self, matrices=changed, widths=widths)
        return replace(found, groups=size, heads=size) if space == "heads" else found

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> "BlockShape":
        matrices = {name: MatrixShape(**matrix) for name, matrix in raw["matrices"].items()}
        return BlockShape(**{**raw, "matrices": matrices})


@dataclass(frozen=True)
class Shape:
    """The blocks of a decoder in order, under their original numbers."""

    blocks: tuple[BlockShape, ...]

    @property
    def parameters(self) -> int:
        return sum(block.parameters for block in self.blocks)

    @property
    def by_index(self) -> dict[int, BlockShape]:
        return {block.index: block for block in self.blocks}

    def changed(self, block: BlockShape) -> "Shape":
        """The shape with another block in the place of the one with its number."""
        return Shape(tuple(block if b.index == block.index else b for b in self.blocks))


def shape_of(blocks: Sequence[BlockShape]) -> Shape:
    """The shape of a model with these blocks."""
    return Shape(tuple(blocks))
