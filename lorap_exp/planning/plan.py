"""What a compressed model will look like, decided before any weight changes.

A stage of the method names its prices, a rule turns prices and a ratio into sizes, and the sizes
of all stages make the frozen `Plan`. `plan.json` alone rebuilds the compressed shapes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class MatrixShape:
    """A weight of a decoder block under its vocabulary name (q, k, v, o, gate, up, down)."""

    name: str
    out_features: int
    in_features: int
    rank: int | None = None

    @property
    def parameters(self) -> int:
        """Weights stored: out * in, or rank * (out + in) when factorised."""
        if self.rank is None:
            return self.out_features * self.in_features
        return self.rank * (self.out_features + self.in_features)


@dataclass(frozen=True)
class BlockShape:
    """The compressible weights of decoder block `index`; norms and biases are not counted.

    `groups` is the number of key-value heads, the units in which attention can be pruned; 0 where
    the family has a fixed number of heads.
    """

    index: int
    matrices: Mapping[str, MatrixShape]
    groups: int = 1

    @property
    def parameters(self) -> int:
        return sum(matrix.parameters for matrix in self.matrices.values())

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> "BlockShape":
        matrices = {name: MatrixShape(**matrix) for name, matrix in raw["matrices"].items()}
        return BlockShape(raw["index"], matrices, raw["groups"])


@dataclass(frozen=True)
class Price:
    """What one size of one block costs: `dense` parameters, or `per_unit` for each unit kept.

    `kind` is "rank" (of the matrix `name`) or "width" (`name` is mlp: channels, or heads:
    key-value groups); `full` is the dense size: min(out, in), all channels, all groups.
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


@dataclass(frozen=True)
class BlockPlan:
    """The sizes of block `index` (its number in the original model); what is absent stays dense."""

    index: int
    ranks: Mapping[str, int] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)

    def shapes(self, dense: BlockShape) -> dict[str, MatrixShape]:
        """Every matrix of the block at its planned size."""
        found = {}
        for name, matrix in dense.matrices.items():
            outs, ins = matrix.out_features, matrix.in_features
            if name in ("gate", "up"):
                outs = self.widths.get("mlp", outs)
            if name == "down":
                ins = self.widths.get("mlp", ins)
            if name in ("q", "k", "v") and "heads" in self.widths:
                outs = outs // dense.groups * self.widths["heads"]
            if name == "o" and "heads" in self.widths:
                ins = ins // dense.groups * self.widths["heads"]
            found[name] = MatrixShape(name, outs, ins, self.ranks.get(name))
        return found

    def parameters(self, dense: BlockShape) -> int:
        return sum(matrix.parameters for matrix in self.shapes(dense).values())


@dataclass(frozen=True)
class Replacement:
    """What stands in place of layers [start, stop) of the original model.

    `kind` is transformer (a decoder layer of the family), ffn, swiglu or linear; `residual` adds
    the input to the output of the latter.
    """

    start: int
    stop: int
    kind: str
    residual: bool = False

    @property
    def is_block(self) -> bool:
        """It is a decoder layer: it has the matrices of one."""
        return self.kind == "transformer"

    def parameters(self, layer: BlockShape) -> int:
        """Counted like a layer's: ffn 8 H^2 + 5 H, swiglu 3 H I, linear H^2, transformer a layer.

        H is the hidden size and I the intermediate size of `layer`.
        """
        hidden, inner = layer.matrices["q"].in_features, layer.matrices["up"].out_features
        return {
            "ffn": 8 * hidden**2 + 5 * hidden,
            "swiglu": 3 * hidden * inner,
            "linear": hidden**2,
            "transformer": layer.parameters,
        }[self.kind]


@dataclass(frozen=True)
class Removal:
    """Layers that go, by original number, and what stands in their place."""

    layers: tuple[int, ...] = ()
    replacements: tuple[Replacement, ...] = ()

    @property
    def by_start(self) -> dict[int, Replacement]:
        return {replacement.start: replacement for replacement in self.replacements}

    def parameters(self, shapes: Sequence[BlockShape]) -> int:
        """Weights removed, net of what the replacements hold."""
        gone = sum(shapes[index].parameters for index in self.layers)
        return gone - sum(r.parameters(shapes[r.start]) for r in self.replacements)

    def remaining(self, shapes: Sequence[BlockShape]) -> list[BlockShape]:
        """Dense shapes of the shortened model in order, under original numbers.

        A replacement has the number of the first layer it stands for; it has no matrices unless
        it is a decoder layer.
        """
        found = []
        for shape in shapes:
            replacement = self.by_start.get(shape.index)
            if replacement is not None and not replacement.is_block:
                found.append(BlockShape(shape.index, {}, shape.groups))
            elif replacement is not None or shape.index not in self.layers:
                found.append(shape)
        return found


NOTHING = Removal()
"""No layer goes."""


@dataclass(frozen=True)
class Plan:
    """Sizes for every block that stays, at a requested ratio of removed weights."""

    ratio: float
    blocks: tuple[BlockPlan, ...]
    removal: Removal = NOTHING

    @property
    def is_dense(self) -> bool:
        """Nothing changes: every layer is there and every matrix keeps its form."""
        return not self.removal.layers and not self.reshapes

    @property
    def reshapes(self) -> bool:
        """Some matrix of a block that stays changes its form."""
        return any(block.ranks or block.widths for block in self.blocks)

    def parameters(self, shapes: Sequence[BlockShape]) -> int:
        """Weights of the planned model, replacements included; `shapes` are the dense ones."""
        remaining = self.removal.remaining(shapes)
        counts = [b.parameters(s) for b, s in zip(self.blocks, remaining, strict=True)]
        modules = [r for r in self.removal.replacements if not r.is_block]
        return sum(counts) + sum(r.parameters(shapes[r.start]) for r in modules)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> "Plan":
        return Plan.from_dict(json.loads(text))

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> "Plan":
        removal = raw["removal"]
        replacements = tuple(Replacement(**r) for r in removal["replacements"])
        return Plan(
            raw["ratio"],
            tuple(BlockPlan(**block) for block in raw["blocks"]),
            Removal(tuple(removal["layers"]), replacements),
        )


def assemble(
    ratio: float,
    shapes: Sequence[BlockShape],
    sizes: Sequence[tuple[Price, int | None]],
    removal: Removal = NOTHING,
) -> Plan:
    """The plan in which every priced item has its allocated size; whatever is None stays dense.

    `shapes` are those of the layers that stay.
    """
    ranks: dict[int, dict[str, int]] = {shape.index: {} for shape in shapes}
    widths: dict[int, dict[str, int]] = {shape.index: {} for shape in shapes}
    for price, size in sizes:
        if size is not None:
            (widths if price.kind == "width" else ranks)[price.block][price.name] = size
    blocks = tuple(BlockPlan(s.index, ranks[s.index], widths[s.index]) for s in shapes)
    return Plan(ratio, blocks, removal)
