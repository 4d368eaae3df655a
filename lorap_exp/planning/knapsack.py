"""Sizes from measured damage: a multiple-choice knapsack over all options of a budget.

Each option picks one of its sizes; the sum of predicted damages is least under the budget. The
Lagrangian relaxation is exact up to one step of one option: every option takes the size with the
least damage + lambda * cost, lambda is found by bisection, and what is left of the budget buys the
best steps that still fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorap_exp.planning.options import Option
from lorap_exp.planning.rounding import Rounding
from lorap_exp.planning.rules import Uniform

ROUNDS = 60
"""Halvings of the price of a parameter: past float64's precision."""


@dataclass(frozen=True)
class Candidates:
    """The sizes that one option may have, ascending by cost; the last may be None, dense."""

    sizes: tuple[int | None, ...]
    costs: NDArray[np.float64]
    damages: NDArray[np.float64]


@dataclass(frozen=True)
class Knapsack:
    """Least predicted damage for what uniform sizes cost; without measured damage, those sizes.

    `floor` is the smallest share of its parameters that any option keeps, to one rounding step, as
    a fraction of the share that all of them keep: measured damage is blind to what happens far from
    the original.
    """

    rounding: Rounding
    floor: float = 0.0

    def choose(self, options: Sequence[Option], ratio: float) -> list[int | None]:
        uniform = Uniform(self.rounding).choose(options, ratio)
        if any(option.damage is None for option in options):
            return uniform
        chosen = zip(options, uniform, strict=True)
        budget = sum(option.cost(size) for option, size in chosen)
        return self.spend(options, budget, self.floor * (1 - ratio))

    def spend(self, options: Sequence[Option], budget: int, floor: float = 0.0) -> list[int | None]:
        """Sizes that cost at most `budget`; each option keeps the share `floor`, rounded down.

        Raises:
            ValueError: the budget is below the smallest sizes.
        """
        found = [self._candidates(option, floor) for option in options]
        least = sum(float(c.costs[0]) for c in found)
        if least > budget:
            raise ValueError(
                f"the smallest sizes need {least:.0f} parameters, but the budget is {budget}: "
                f"lower the ratio or round to a smaller multiple"
            )
        low, high = 0.0, 1.0
        while self._cost(found, self._picks(found, high)) > budget:
            high *= 4
        for _ in range(ROUNDS):
            middle = (low + high) / 2
            over = self._cost(found, self._picks(found, middle)) > budget
            low, high = (middle, high) if over else (low, middle)
        picks = self._fill(found, self._picks(found, high), budget)
        return [c.sizes[pick] for c, pick in zip(found, picks, strict=True)]

    def _candidates(self, option: Option, floor: float) -> Candidates:
        assert option.damage is not None
        step = self.rounding.step(option)
        smallest = max(step, int(option.size_for(floor)) // step * step)
        sizes: list[int | None] = []
        size = min(smallest, option.full // step * step)
        while size < option.break_even and size <= option.full:
            sizes.append(size)
            size += step
        damages = [option.damage[size] for size in sizes if size is not None]
        return Candidates(
            (*sizes, None),
            np.array([option.cost(size) for size in (*sizes, None)], dtype=np.float64),
            np.array([*damages, option.damage[option.full]]),
        )

    @staticmethod
    def _picks(found: Sequence[Candidates], price: float) -> list[int]:
        return [int(np.argmin(c.damages + price * c.costs)) for c in found]

    @staticmethod
    def _cost(found: Sequence[Candidates], picks: Sequence[int]) -> float:
        return sum(float(c.costs[pick]) for c, pick in zip(found, picks, strict=True))

    def _fill(self, found: Sequence[Candidates], picks: list[int], budget: int) -> list[int]:
        """Spend the remainder on the steps that save most damage for their parameters."""
        left = budget - self._cost(found, picks)
        while True:
            best, gain = None, 0.0
            for i, (c, pick) in enumerate(zip(found, picks, strict=True)):
                extra = c.costs[pick + 1 :] - c.costs[pick]
                fits = (extra <= left) & (extra > 0)
                if not fits.any():
                    continue
                rates = np.where(
                    fits, (c.damages[pick] - c.damages[pick + 1 :]) / np.maximum(extra, 1), -np.inf
                )
                j = int(np.argmax(rates))
                if rates[j] >= gain:
                    best, gain = (i, pick + 1 + j), float(rates[j])
            if best is None:
                return picks
            i, j = best
            left -= float(found[i].costs[j] - found[i].costs[picks[i]])
            picks[i] = j
