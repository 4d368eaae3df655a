"""Rank and width allocation: prices and a ratio in, sizes out.

`PublishedRanks` is LoRAP's rule (arXiv 2404.09695, section 3.2, and its public code) written by
parameter cost, so that it holds for grouped-query attention and gives exactly the published ranks
for square matrices. `PublishedWidths` is the MLP budget with its kept least important fraction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from lorap_exp.planning.plan import Price
from lorap_exp.planning.rounding import Rounding


class Rule(Protocol):
    """Turns prices and a ratio into sizes; None keeps the dense form."""

    def allocate(self, prices: Sequence[Price], ratio: float) -> list[int | None]: ...


@dataclass(frozen=True)
class UniformRanks:
    """Every matrix keeps the same share of its parameters."""

    rounding: Rounding

    def allocate(self, prices: Sequence[Price], ratio: float) -> list[int | None]:
        targets = [int((1 - ratio) * price.break_even) for price in prices]
        return self.rounding.apply(prices, targets)


@dataclass(frozen=True)
class PublishedRanks:
    """Inside each block, (v + o) : (q + k) parameters as `value_output_share` : 1.

    When the value and output matrices would cost at least their dense form they stay dense, and
    query and key pay for the whole block. Matrices of one group keep the same share of their
    parameters; a rank that saves nothing is never factorised.
    """

    value_output_share: float
    rounding: Rounding

    def allocate(self, prices: Sequence[Price], ratio: float) -> list[int | None]:
        targets: list[float | None] = []
        for _, group in groupby(prices, key=lambda price: price.block):
            targets += self._targets(list(group), ratio)
        return self.rounding.apply(prices, targets)

    def _targets(self, prices: list[Price], ratio: float) -> list[float | None]:
        """The ranks of one block."""
        dense = {
            favoured: sum(p.dense for p in prices if (p.name in "vo") == favoured)
            for favoured in (True, False)
        }
        if not dense[True] or not dense[False]:
            return [int((1 - ratio) * price.break_even) for price in prices]
        total, share = dense[True] + dense[False], self.value_output_share

        def rank(price: Price) -> int:
            uniform = int((1 - ratio) * price.break_even)
            if price.name in "vo":
                return int(uniform * (total / dense[True]) * share / (1 + share))
            return int(uniform * (total / dense[False]) / (1 + share))

        favoured = [price for price in prices if price.name in "vo"]
        if all(rank(price) >= price.break_even for price in favoured):
            return [
                None if price in favoured else _remainder(price, dense, ratio) for price in prices
            ]
        return [rank(price) for price in prices]


def _remainder(price: Price, dense: dict[bool, int], ratio: float) -> int:
    """Rank of a query or key matrix when value and output are dense and it pays for both."""
    total = dense[True] + dense[False]
    whole = int((1 - ratio) * price.break_even * (total / dense[False]))
    return whole - int(price.break_even * (dense[True] / dense[False]))


@dataclass(frozen=True)
class SpectrumRanks:
    """Ranks by marginal loss per parameter, once the spectra of a block are known.

    `allocate` gives each block its budget (uniform ranks); `refine` spends it: the next rank goes
    to the matrix whose next eigenvalue, as a share of that matrix's energy, is largest for its
    cost. A matrix whose factors would cost as much as it does stays dense and pays for that.
    """

    rounding: Rounding

    def allocate(self, prices: Sequence[Price], ratio: float) -> list[int | None]:
        return UniformRanks(self.rounding).allocate(prices, ratio)

    def refine(
        self, prices: Sequence[Price], energies: Sequence[Sequence[float]], budget: int
    ) -> list[int | None]:
        """Sizes of one block that cost at most `budget`.

        Args:
            prices: of the matrices of one block.
            energies: for each matrix, squared singular values under the metric, descending.
            budget: parameters.
        """
        dense: set[int] = set()
        while True:
            left = budget - sum(prices[i].dense for i in dense)
            open_ = [i for i in range(len(prices)) if i not in dense]
            ranks = self._greedy([prices[i] for i in open_], [energies[i] for i in open_], left)
            saturated = {
                i
                for i, rank in zip(open_, ranks, strict=True)
                if rank + self.rounding.multiple > prices[i].break_even
            }
            affordable = left - sum(prices[i].dense for i in saturated)
            rest = [i for i in open_ if i not in saturated]
            least = self.rounding.multiple * sum(prices[i].per_unit for i in rest)
            if not saturated or affordable < least:
                found = dict(zip(open_, ranks, strict=True))
                return [None if i in dense else found[i] for i in range(len(prices))]
            dense |= saturated

    def _greedy(
        self, prices: Sequence[Price], energies: Sequence[Sequence[float]], budget: int
    ) -> list[int]:
        step = self.rounding.multiple
        ranks = [step] * len(prices)
        left = budget - sum(step * price.per_unit for price in prices)
        gains = []
        for i, (price, energy) in enumerate(zip(prices, energies, strict=True)):
            total = sum(energy) or 1.0
            for rank in range(step, int(price.break_even) - step + 1, step):
                gain = sum(energy[rank : rank + step]) / total / (step * price.per_unit)
                gains.append((-gain, rank, i))
        for _, rank, i in sorted(gains):
            cost = step * prices[i].per_unit
            if cost <= left and rank == ranks[i]:
                ranks[i] += step
                left -= cost
        return ranks


@dataclass(frozen=True)
class PublishedWidths:
    """The published MLP width: prune int((s + p) C) - int(p C) of C channels.

    `keep_least` is p, the fraction of least important channels that stay and are paid for.
    """

    keep_least: float
    rounding: Rounding

    def allocate(self, prices: Sequence[Price], ratio: float) -> list[int | None]:
        return self.rounding.apply(prices, [self._width(price, ratio) for price in prices])

    def _width(self, price: Price, ratio: float) -> int | None:
        pruned = int((ratio + self.keep_least) * price.full) - self.kept_least(price.full)
        width = price.full - pruned
        if width <= self.kept_least(price.full):
            raise ValueError(
                f"ratio + keep_least must be below 1 to leave channels in block {price.block}, "
                f"got {ratio} + {self.keep_least}"
            )
        return None if pruned == 0 else width

    def kept_least(self, channels: int) -> int:
        return int(channels * self.keep_least)


@dataclass(frozen=True)
class UniformWidths:
    """Every block keeps the same share of its units, to the rounding."""

    rounding: Rounding

    def allocate(self, prices: Sequence[Price], ratio: float) -> list[int | None]:
        return self.rounding.apply(prices, [(1 - ratio) * price.full for price in prices])
