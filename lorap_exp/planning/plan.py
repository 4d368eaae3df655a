"""What a compressed model will look like, decided before any weight changes.

A stage of the method names its prices, a rule turns prices and a ratio into sizes, and the sizes
of all stages make the frozen `Plan`. `plan.json` alone rebuilds the compressed shapes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class MatrixShape:
    """A weight of a decoder block under its vocabulary name (q, k, v, o, gate, up, down)."""

    name: str
    out_features: int
    in_features: int

    @property
    def parameters(self) -> int:
        return self.out_features * self.in_features


@dataclass(frozen=True)
class BlockShape:
    """The compressible weights of decoder block `index`; norms and biases are not counted."""

    index: int
    matrices: Mapping[str, MatrixShape]

    @property
    def parameters(self) -> int:
        return sum(matrix.parameters for matrix in self.matrices.values())


@dataclass(frozen=True)
class Price:
    """What one size of one block costs: `dense` parameters, or `per_unit` for each unit kept.

    `kind` is "rank" (a factorised matrix) or "width" (the channels of an MLP); `full` is the
    largest size that makes sense: min(out, in) for a rank, all channels for a width.
    """

    block: int
    name: str
    kind: str
    dense: int
    per_unit: int
    full: int

    @property
    def break_even(self) -> float:
        """The size at which compressed costs as much as dense."""
        return self.dense / self.per_unit


class Rule(Protocol):
    """Turns prices and a ratio into sizes; None keeps the dense form."""

    def allocate(self, prices: Sequence[Price], ratio: float) -> list[int | None]: ...


@dataclass(frozen=True)
class BlockPlan:
    """The sizes of block `index` (its number in the original model)."""

    index: int
    ranks: Mapping[str, int] = field(default_factory=dict)
    width: int | None = None

    def parameters(self, shape: BlockShape) -> int:
        """Weights left in the block: out * in, or rank * (out + in), at the planned width."""
        total = 0
        for name, matrix in shape.matrices.items():
            out_features, in_features = matrix.out_features, matrix.in_features
            if self.width is not None and name in ("gate", "up"):
                out_features = self.width
            if self.width is not None and name == "down":
                in_features = self.width
            rank = self.ranks.get(name)
            dense = out_features * in_features
            total += dense if rank is None else rank * (out_features + in_features)
        return total


@dataclass(frozen=True)
class Plan:
    """Sizes for every block at a requested ratio of removed decoder weights."""

    ratio: float
    blocks: tuple[BlockPlan, ...]

    @property
    def is_dense(self) -> bool:
        """Nothing changes: every matrix keeps its form."""
        return not any(block.ranks or block.width is not None for block in self.blocks)

    def parameters(self, shapes: Sequence[BlockShape]) -> int:
        return sum(
            block.parameters(shape) for block, shape in zip(self.blocks, shapes, strict=True)
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> "Plan":
        raw = json.loads(text)
        return Plan(raw["ratio"], tuple(BlockPlan(**block) for block in raw["blocks"]))


def assemble(
    ratio: float, shapes: Sequence[BlockShape], sizes: Sequence[tuple[Price, int | None]]
) -> Plan:
    """The plan in which every priced item has its allocated size; whatever is None stays dense."""
    ranks: dict[int, dict[str, int]] = {shape.index: {} for shape in shapes}
    widths: dict[int, int] = {}
    for price, size in sizes:
        if size is None:
            continue
        if price.kind == "width":
            widths[price.block] = size
        else:
            ranks[price.block][price.name] = size
    blocks = (BlockPlan(s.index, ranks[s.index], widths.get(s.index)) for s in shapes)
    return Plan(ratio, tuple(blocks))
