"""What a method could do, priced: an option is one size that can be chosen, with its cost.

Rules (`planning.rules`) choose the sizes. What was measured of the model, the damage of each size
or the importance of a block, moves parameters about and never changes their number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lorap_exp.planning.edits import Bias, Edit, Factor, Resize
from lorap_exp.planning.shapes import SPACES, BlockShape, MatrixShape, Shape


@dataclass(frozen=True)
class Option:
    """One size of one block: `dense` parameters as it is, or `cost(size)` when it is chosen.

    Attributes:
        block: number of the block in the original model.
        name: of the matrix (kind rank) or of the space (kind width).
        kind: what the size counts.
        dense: parameters of everything that the size changes, as they are.
        per_unit: parameters of one unit of the size.
        full: the largest size: min(out, in) of a matrix, all units of a space.
        form: how factors are stored (`shapes.factor_parameters`).
        biases: matrices that get a bias when a size is chosen, and `fixed`, what those cost.
        step: sizes are multiples of it, whatever the rounding (two for rotary pairs).
        damage: predicted loss of sizes 0, 1, ..., full where it was measured; comparable between
            the options that one rule sees.
        importance: of the block, where it was measured.
    """

    block: int
    name: str
    kind: Literal["rank", "width"]
    dense: int
    per_unit: int
    full: int
    form: str = "pair"
    biases: tuple[str, ...] = ()
    fixed: int = 0
    step: int = 1
    damage: tuple[float, ...] | None = None
    importance: float | None = None

    def cost(self, size: int | None) -> int:
        """Parameters at a size; None is the dense form."""
        if size is None:
            return self.dense
        return self.per_unit * size + self.fixed - (size**2 if self.form == "pivoted" else 0)

    def size_for(self, share: float) -> float:
        """The size whose cost is a share of the dense cost."""
        if self.form == "pivoted":
            root = self.per_unit**2 - 4 * share * self.dense
            return (self.per_unit - math.sqrt(max(root, 0.0))) / 2
        if self.fixed:
            return (share * self.dense - self.fixed) / self.per_unit
        return share * self.break_even

    @property
    def break_even(self) -> float:
        """The size at which the chosen form costs as much as the dense one."""
        if self.form == "pivoted":
            return float(self.full)
        return (self.dense - self.fixed) / self.per_unit

    def edits(self, size: int) -> list[Edit]:
        """What choosing a size changes."""
        added = [Bias(self.block, matrix) for matrix in self.biases]
        if self.kind == "rank":
            return [Factor(self.block, self.name, size, self.form), *added]
        return [Resize(self.block, self.name, size), *added]


def rank_option(block: int, matrix: MatrixShape, form: str = "pair") -> Option:
    """The rank of a matrix that is dense now."""
    outs, ins = matrix.out_features, matrix.in_features
    return Option(block, matrix.name, "rank", outs * ins, outs + ins, min(outs, ins), form=form)


def rank_options(shape: Shape, targets: Sequence[str], form: str = "pair") -> list[Option]:
    """The rank of every target of every block that has it."""
    return [
        rank_option(block.index, block.matrices[name], form)
        for block in shape.blocks
        for name in targets
        if name in block.matrices
    ]


def width_option(
    block: BlockShape, space: str, step: int = 1, biases: Sequence[str] = ()
) -> Option:
    """The size of a space whose matrices are dense now; `biases` of matrices that have none."""
    full = block.size(space)
    missing = tuple(name for name in biases if not block.matrices[name].biased)
    fixed = sum(block.matrices[name].out_features for name in missing)
    present = [block.matrices[n] for n in SPACES[space].matrices if n in block.matrices]
    dense = sum(matrix.out_features * matrix.in_features for matrix in present)
    return Option(
        block.index,
        space,
        "width",
        dense,
        dense // full,
        full,
        biases=missing,
        fixed=fixed,
        step=step,
    )


def edits_of(options: Sequence[Option], sizes: Sequence[int | None]) -> list[Edit]:
    """The edits of the chosen sizes; None leaves everything as it is."""
    chosen = zip(options, sizes, strict=True)
    return [edit for o, size in chosen if size is not None for edit in o.edits(size)]
