"""Sizes of modules inside one another: a width, and below it a rank for each of its matrices.

A `Module` is a part of a block with one width; each width has its damage, and each matrix of it
then has ranks with costs and further damage. Under a price of a parameter the best rank of every
matrix is found for each width, then the best width; the price is bisected until the budget is met.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorap_exp.planning.edits import Edit, Factor, Resize
from lorap_exp.planning.shapes import factor_parameters

Values = NDArray[np.float64]
LEFT = 20
"""Halvings of the price at which what is left of the budget is offered."""
LOWEST, ROUNDS = 1e-40, 60
"""Where the search for the price of a parameter starts, and its halvings once it is bracketed."""


@dataclass(frozen=True)
class Ranks:
    """Ranks that one matrix may have at each width: `costs` and `damages` are (widths, ranks).

    The last rank is the full one: the matrix stays dense, at no damage. So it does at ranks that
    would cost as much.
    """

    matrix: str
    ranks: tuple[int, ...]
    costs: Values
    damages: Values


@dataclass(frozen=True)
class Module:
    """One part of a block: its widths, ascending damage of each, and the ranks of its matrices.

    `space` is None where there is no width to choose. The last width is the full one.
    """

    block: int
    space: str | None
    widths: tuple[int, ...]
    damages: Values
    matrices: tuple[Ranks, ...]

    def pick(self, price: float, weight: float) -> tuple[int, tuple[int, ...], float]:
        """Number of the best width, of the best rank of each matrix, and their cost."""
        total, chosen = self.damages * weight, []
        for ranks in self.matrices:
            values = ranks.damages * weight + price * ranks.costs
            best = values.argmin(1)
            chosen.append(best)
            total = total + values[np.arange(len(best)), best]
        width = int(total.argmin())
        picks = tuple(int(best[width]) for best in chosen)
        costs = (m.costs[width, pick] for m, pick in zip(self.matrices, picks, strict=True))
        return width, picks, float(sum(costs))

    def edits(self, width: int, picks: Sequence[int], form: str) -> list[Edit]:
        """What the choice changes."""
        found: list[Edit] = []
        if self.space is not None and width < len(self.widths) - 1:
            found.append(Resize(self.block, self.space, self.widths[width]))
        for ranks, pick in zip(self.matrices, picks, strict=True):
            if ranks.costs[width, pick] < ranks.costs[width, -1]:
                found.append(Factor(self.block, ranks.matrix, ranks.ranks[pick], form))
        return found


def least(modules: Sequence[Module]) -> int:
    """Parameters of the smallest sizes."""
    return math.ceil(sum(module.pick(1 / LOWEST, LOWEST)[2] for module in modules))


def damage_of(modules: Sequence[Module], edits: Sequence[Edit]) -> float:
    """The predicted damage of some edits of the modules' block, unweighted."""
    widths = {edit.space: edit.size for edit in edits if isinstance(edit, Resize)}
    ranks = {edit.matrix: edit.rank for edit in edits if isinstance(edit, Factor)}
    total = 0.0
    for module in modules:
        full = module.widths[-1]
        width = module.widths.index(widths.get(module.space or "", full))
        total += float(module.damages[width])
        for matrix in module.matrices:
            rank = ranks.get(matrix.matrix)
            if rank is not None:
                total += float(matrix.damages[width, matrix.ranks.index(rank)])
    return total


def rank_costs(outs: int, ins: int, ranks: Sequence[int], form: str) -> Values:
    """Parameters at each rank; the last is the dense matrix, and no rank costs more."""
    costs = [factor_parameters(outs, ins, rank, form) for rank in ranks]
    costs[-1] = outs * ins
    return np.array([min(cost, outs * ins) for cost in costs], dtype=np.float64)


def allocate(
    modules: Sequence[Module], budget: int, weights: dict[int, float], form: str
) -> list[Edit]:
    """The edits of least weighted damage that keep at most `budget` parameters.

    Args:
        modules: of all blocks.
        budget: parameters that may stay.
        weights: of the damage of each block.
        form: of factors.

    Raises:
        ValueError: the smallest sizes are above the budget.
    """

    def cost(price: float) -> float:
        return sum(module.pick(price, weights[module.block])[2] for module in modules)

    high = LOWEST
    while cost(high) > budget:
        high *= 16
        if high > 1 / LOWEST:
            raise ValueError(
                f"the smallest sizes need more than the {budget} parameters that may stay"
            )
    low = 0.0 if high == LOWEST else high / 16
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) > budget else (low, middle)
    chosen = [module.pick(high, weights[module.block]) for module in modules]
    left = budget - sum(pick[2] for pick in chosen)
    for step in range(LEFT):  # the first sizes beyond the price that still fit
        for number, module in enumerate(modules):
            more = module.pick(low / 2**step, weights[module.block])
            if 0 < more[2] - chosen[number][2] <= left:
                left -= more[2] - chosen[number][2]
                chosen[number] = more
    return [
        edit
        for module, (width, picks, _) in zip(modules, chosen, strict=True)
        for edit in module.edits(width, picks, form)
    ]
