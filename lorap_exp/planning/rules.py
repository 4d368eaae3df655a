"""Rank and width allocation. Rounding of sizes lives here, once, and always rounds down.

`PublishedRanks` is LoRAP's rule (arXiv 2404.09695, section 3.2, and its public code) written by
parameter cost, so that it holds for grouped-query attention and gives exactly the published ranks
for square matrices. `Widths` is the published MLP budget with its kept least important fraction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from lorap_exp.planning.plan import Price


@dataclass(frozen=True)
class UniformRanks:
    """Every matrix keeps the same share of its parameters."""

    def allocate(self, prices: Sequence[Price], ratio: float) -> list[int | None]:
        return [_rank(price, int((1 - ratio) * price.break_even), self) for price in prices]


@dataclass(frozen=True)
class PublishedRanks:
    """Inside each block, (v + o) : (q + k) parameters as `value_output_share` : 1.

    When the value and output matrices would cost at least their dense form they stay dense, and
    query and key pay for the whole block. Matrices of one group keep the same share of their
    parameters; a rank that saves nothing is never factorised.
    """

    value_output_share: float

    def allocate(self, prices: Sequence[Price], ratio: float) -> list[int | None]:
        sizes: list[int | None] = []
        for _, group in groupby(prices, key=lambda price: price.block):
            sizes += self._allocate_block(list(group), ratio)
        return sizes

    def _allocate_block(self, prices: list[Price], ratio: float) -> list[int | None]:
        dense = {
            favoured: sum(p.dense for p in prices if (p.name in "vo") == favoured)
            for favoured in (True, False)
        }
        if not dense[True] or not dense[False]:
            return UniformRanks().allocate(prices, ratio)
        total, share = dense[True] + dense[False], self.value_output_share

        def rank(price: Price) -> int:
            uniform = int((1 - ratio) * price.break_even)
            if price.name in "vo":
                return int(uniform * (total / dense[True]) * share / (1 + share))
            return int(uniform * (total / dense[False]) / (1 + share))

        favoured = [price for price in prices if price.name in "vo"]
        if all(rank(price) >= price.break_even for price in favoured):
            return [
                None if price in favoured else _rank(price, _remainder(price, dense, ratio), self)
                for price in prices
            ]
        return [_rank(price, rank(price), self) for price in prices]


def _remainder(price: Price, dense: dict[bool, int], ratio: float) -> int:
    """Rank of a query or key matrix when value and output are dense and it pays for both."""
    total = dense[True] + dense[False]
    whole = int((1 - ratio) * price.break_even * (total / dense[False]))
    return whole - int(price.break_even * (dense[True] / dense[False]))


def _rank(price: Price, rank: int, rule: object) -> int | None:
    if rank < 1:
        raise ValueError(
            f"the rank of {price.name} in block {price.block} must be at least 1, got {rank} "
            f"from {rule}: lower the ratio or choose a more even allocation"
        )
    return None if rank >= price.break_even else rank


@dataclass(frozen=True)
class Widths:
    """The published MLP width: prune int((s + p) C) - int(p C) of C channels.

    `keep_least` is p, the fraction of least important channels that stay and are paid for.
    """

    keep_least: float

    def allocate(self, prices: Sequence[Price], ratio: float) -> list[int | None]:
        return [self._width(price, ratio) for price in prices]

    def _width(self, price: Price, ratio: float) -> int | None:
        pruned = int((ratio + self.keep_least) * price.full) - self.kept_least(price.full)
        if pruned == 0:
            return None
        width = price.full - pruned
        if width <= self.kept_least(price.full):
            raise ValueError(
                f"ratio + keep_least must be below 1 to leave channels in block {price.block}, "
                f"got {ratio} + {self.keep_least}"
            )
        return width

    def kept_least(self, channels: int) -> int:
        return int(channels * self.keep_least)
