"""A plan is a list of edits, decided before any weight changes.

Every edit says what it makes of a shape, so shapes and parameter counts of a planned model are a
fold over its edits, and `plan.json` alone rebuilds them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from typing import Any, Protocol

from lorap_exp.planning.shapes import BlockShape, Shape


class Edit(Protocol):
    """One change of a model's shape."""

    def on(self, shape: Shape) -> Shape:
        """The shape after the edit."""
        ...


@dataclass(frozen=True)
class Factor:
    """A matrix as factors of a rank; with rank None as one dense matrix again."""

    block: int
    matrix: str
    rank: int | None
    form: str = "pair"

    def on(self, shape: Shape) -> Shape:
        block = shape.by_index[self.block]
        matrix = replace(block.matrices[self.matrix], rank=self.rank, form=self.form)
        return shape.changed(replace(block, matrices={**block.matrices, self.matrix: matrix}))


@dataclass(frozen=True)
class Resize:
    """Another size of a space of one block (see `shapes.SPACES`)."""

    block: int
    space: str
    size: int

    def on(self, shape: Shape) -> Shape:
        return shape.changed(shape.by_index[self.block].resized(self.space, self.size))


@dataclass(frozen=True)
class Bias:
    """A bias on a matrix that has none."""

    block: int
    matrix: str

    def on(self, shape: Shape) -> Shape:
        block = shape.by_index[self.block]
        before = block.matrices[self.matrix]
        matrix = replace(before, bias=not before.biased)
        return shape.changed(replace(block, matrices={**block.matrices, self.matrix: matrix}))


@dataclass(frozen=True)
class Branch:
    """A linear branch of a rank beside the MLP: mlp(x) + L R x."""

    block: int
    rank: int

    def on(self, shape: Shape) -> Shape:
        block = shape.by_index[self.block]
        extra = block.extra + 2 * self.rank * block.hidden
        return shape.changed(replace(block, branch=self.rank, extra=extra))


@dataclass(frozen=True)
class Slice:
    """The residual stream of the model at another size, with a linear map on each shortcut."""

    size: int

    def on(self, shape: Shape) -> Shape:
        for block in shape.blocks:
            if not block.matrices:
                raise ValueError(
                    f"the residual stream cannot be sliced where a network of kind {block.kind} "
                    f"replaces layers (from layer {block.index})"
                )
        blocks = [block.resized("residual", self.size) for block in shape.blocks]
        return Shape(tuple(replace(b, extra=b.extra + 2 * self.size**2) for b in blocks))


@dataclass(frozen=True)
class Drop:
    """Layers that go, by original number."""

    layers: tuple[int, ...]

    def on(self, shape: Shape) -> Shape:
        return Shape(tuple(block for block in shape.blocks if block.index not in self.layers))


@dataclass(frozen=True)
class Merge(Drop):
    """Layers that go into an earlier one.

    `cosine` is how alike the final hidden states stayed, `threshold` what was asked of them.
    """

    into: int
    cosine: float
    threshold: float


@dataclass(frozen=True)
class Insert:
    """Something in place of layers [start, stop) of the original model.

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

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(range(self.start, self.stop))

    def parameters(self, layer: BlockShape) -> int:
        """Counted like a layer's: ffn 8 H^2 + 5 H, swiglu 3 H I, linear H^2, transformer a layer.

        H is the hidden size and I the intermediate size of `layer`.
        """
        hidden, inner = layer.hidden, layer.matrices["up"].out_features
        return {
            "ffn": 8 * hidden**2 + 5 * hidden,
            "swiglu": 3 * hidden * inner,
            "linear": hidden**2,
            "transformer": layer.parameters,
        }[self.kind]

    def on(self, shape: Shape) -> Shape:
        layer = shape.by_index[self.start]
        here = replace(layer, kind=self.kind, residual=self.residual)
        if not self.is_block:
            here = replace(here, matrices={}, extra=self.parameters(layer))
        return Drop(self.layers[1:]).on(shape).changed(here)


@dataclass(frozen=True)
class Quantised:
    """The matrices of a block as integers; shapes and counts stay.

    `to` is int8 (one scale for each row), int4 or gptq (one for each `group_size` inputs).
    """

    block: int
    to: str
    group_size: int

    def on(self, shape: Shape) -> Shape:
        return shape


KINDS = (Factor, Resize, Bias, Branch, Slice, Drop, Merge, Insert, Quantised)
EDITS = {kind.__name__: kind for kind in KINDS}


@dataclass(frozen=True)
class Plan:
    """The edits of a method at a requested ratio of removed weights, in order."""

    ratio: float
    edits: tuple[Edit, ...] = ()

    @property
    def is_dense(self) -> bool:
        """Nothing changes."""
        return not self.edits

    def __add__(self, edits: Iterable[Edit]) -> "Plan":
        return replace(self, edits=(*self.edits, *edits))

    def shape(self, dense: Shape) -> Shape:
        """The shape of the planned model."""
        return reduce(lambda shape, edit: edit.on(shape), self.edits, dense)

    @property
    def removed_layers(self) -> tuple[int, ...]:
        """Layers of the original that are gone or replaced, in order."""
        gone = [edit.layers for edit in self.edits if isinstance(edit, Drop | Insert)]
        return tuple(sorted(index for layers in gone for index in layers))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; each edit names its kind."""
        edits = [{"edit": type(e).__name__, **asdict(e)} for e in self.edits]  # type: ignore[call-overload]
        return {"ratio": self.ratio, "edits": edits}

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> "Plan":
        return Plan(raw["ratio"], tuple(_edit(edit) for edit in raw["edits"]))


def _edit(raw: Mapping[str, Any]) -> Edit:
    fields = {key: value for key, value in raw.items() if key != "edit"}
    if "layers" in fields:
        fields["layers"] = tuple(fields["layers"])
    edit: Edit = EDITS[raw["edit"]](**fields)
    return edit


def of_block(edits: Sequence[Edit], index: int) -> list[Edit]:
    """The edits of one block, and those of the whole model."""
    return [edit for edit in edits if getattr(edit, "block", index) == index]
