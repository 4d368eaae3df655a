"""From options and a ratio to sizes.

`PublishedRanks` is LoRAP's rule (arXiv 2404.09695, section 3.2, and its public code) written by
parameter cost, so that it holds for grouped-query attention and gives exactly the published ranks
for square matrices. `PublishedWidths` is the MLP budget with its kept least important fraction.
Rules that use measured damage are in `planning.knapsack`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Protocol

from lorap_exp.planning.options import Option
from lorap_exp.planning.rounding import Rounding


class Rule(Protocol):
    """Turns options and the ratio of parameters to remove into sizes; None stays dense."""

    def choose(self, options: Sequence[Option], ratio: float) -> list[int | None]: ...


@dataclass(frozen=True)
class Uniform:
    """Everything keeps the same share of its parameters."""

    rounding: Rounding

    def choose(self, options: Sequence[Option], ratio: float) -> list[int | None]:
        targets = [float(self._target(option, ratio)) for option in options]
        return self.rounding.apply(options, targets)

    def _target(self, option: Option, ratio: float) -> float:
        if option.kind == "width":
            return (1 - ratio) * option.full
        return int(option.size_for(1 - ratio))


@dataclass(frozen=True)
class PublishedRanks:
    """Inside each block, (v + o) : (q + k) parameters as `value_output_share` : 1.

    When the value and output matrices would cost at least their dense form they stay dense, and
    query and key pay for the whole block. Matrices of one group keep the same share of their
    parameters; a rank that saves nothing is never factorised.
    """

    value_output_share: float
    rounding: Rounding

    def choose(self, options: Sequence[Option], ratio: float) -> list[int | None]:
        targets: list[float | None] = []
        for _, group in groupby(options, key=lambda option: option.block):
            targets += self._targets(list(group), ratio)
        return self.rounding.apply(options, targets)

    def _targets(self, options: list[Option], ratio: float) -> list[float | None]:
        """The ranks of one block."""
        dense = {
            favoured: sum(o.dense for o in options if (o.name in "vo") == favoured)
            for favoured in (True, False)
        }
        if not dense[True] or not dense[False]:
            return [int(option.size_for(1 - ratio)) for option in options]
        total, share = dense[True] + dense[False], self.value_output_share

        def rank(option: Option) -> int:
            uniform = int(option.size_for(1 - ratio))
            if option.name in "vo":
                return int(uniform * (total / dense[True]) * share / (1 + share))
            return int(uniform * (total / dense[False]) / (1 + share))

        favoured = [option for option in options if option.name in "vo"]
        if all(rank(option) >= option.break_even for option in favoured):
            return [
                None if option in favoured else _remainder(option, dense, ratio)
                for option in options
            ]
        return [rank(option) for option in options]


def _remainder(option: Option, dense: dict[bool, int], ratio: float) -> int:
    """Rank of a query or key matrix when value and output are dense and it pays for both."""
    total = dense[True] + dense[False]
    whole = int((1 - ratio) * option.break_even * (total / dense[False]))
    return whole - int(option.break_even * (dense[True] / dense[False]))


@dataclass(frozen=True)
class PublishedWidths:
    """The published MLP width: prune int((s + p) C) - int(p C) of C channels.

    `keep_least` is p, the fraction of least important channels that stay and are paid for.
    """

    keep_least: float
    rounding: Rounding

    def choose(self, options: Sequence[Option], ratio: float) -> list[int | None]:
        return self.rounding.apply(options, [self._width(option, ratio) for option in options])

    def _width(self, option: Option, ratio: float) -> int | None:
        pruned = int((ratio + self.keep_least) * option.full) - self.kept_least(option.full)
        width = option.full - pruned
        if width <= self.kept_least(option.full):
            raise ValueError(
                f"ratio + keep_least must be below 1 to leave channels in block {option.block}, "
                f"got {ratio} + {self.keep_least}"
            )
        return None if pruned == 0 else width

    def kept_least(self, channels: int) -> int:
        return int(channels * self.keep_least)


@dataclass(frozen=True)
class LayerShares:
    """Each block its own ratio: L s softmax(-importance / T), at most `cap` (MoDeGPT, 2408.09632).

    What blocks above the cap cannot give is taken from the others in proportion. Without a measured
    importance every block has the same ratio.
    """

    temperature: float
    cap: float
    rounding: Rounding

    def choose(self, options: Sequence[Option], ratio: float) -> list[int | None]:
        costs: dict[int, int] = {}
        for option in options:
            costs[option.block] = costs.get(option.block, 0) + option.dense
        importance = {option.block: option.importance for option in options}
        ratios = self.ratios(costs, importance, ratio)
        shares = [1 - ratios[option.block] for option in options]
        targets = [o.size_for(share) for o, share in zip(options, shares, strict=True)]
        return self.rounding.apply(options, targets)

    def ratios(
        self, costs: dict[int, int], importance: dict[int, float | None], ratio: float
    ) -> dict[int, float]:
        """The ratio of each block; their mean, weighted by cost, is `ratio`.

        Raises:
            ValueError: the cap is below the ratio.
        """
        if ratio > self.cap:
            raise ValueError(f"the cap of a layer must be at least the ratio, got {self.cap}")
        known = [value for value in importance.values() if value is not None]
        if len(known) < len(costs):
            return dict.fromkeys(costs, ratio)
        highest = -min(known)
        weights = {
            block: math.exp((-value - highest) / self.temperature)
            for block, value in importance.items()
            if value is not None
        }
        total, capped = ratio * sum(costs.values()), set[int]()
        while True:
            left = total - sum(self.cap * costs[block] for block in capped)
            free = {block: w for block, w in weights.items() if block not in capped}
            unit = left / sum(costs[block] * w for block, w in free.items()) if free else 0.0
            over = {block for block, w in free.items() if unit * w > self.cap}
            if not over:
                return {
                    block: self.cap if block in capped else unit * w for block, w in weights.items()
                }
            capped |= over


@dataclass(frozen=True)
class Threshold:
    """One threshold on the scores of units over all options (FLAP, arXiv 2312.11983).

    Units go in ascending order of their score, the drop of an option's damage from one size to the
    next larger one, until the ratio is met; the first unit of an option always stays. Without
    measured damage every option keeps the same share.
    """

    rounding: Rounding

    def choose(self, options: Sequence[Option], ratio: float) -> list[int | None]:
        budget = (1 - ratio) * sum(option.dense for option in options)
        sizes = [option.full for option in options]
        scored: list[tuple[float, int, int]] = []
        for i, option in enumerate(options):
            if option.damage is None:
                return Uniform(self.rounding).choose(options, ratio)
            step = self.rounding.step(option)
            ladder = [option.full, *range((option.full - 1) // step * step, 0, -step)]
            for larger, smaller in pairwise(ladder):
                lost = option.damage[smaller] - option.damage[larger]
                scored.append((lost / (larger - smaller), -smaller, i))
        cost = sum(option.dense for option in options)
        for _, size, i in sorted(scored):
            if cost <= budget:
                break
            option, smaller = options[i], -size
            if sizes[i] <= smaller:
                continue
            before = option.dense if sizes[i] == option.full else option.cost(sizes[i])
            cost += option.cost(smaller) - before
            sizes[i] = smaller
        return [None if s == o.full else s for s, o in zip(sizes, options, strict=True)]


@dataclass(frozen=True)
class Proportions:
    """Some options lose a multiple of the common ratio, the others what is left (Olica)."""

    factors: tuple[tuple[str, float], ...]
    rounding: Rounding

    def choose(self, options: Sequence[Option], ratio: float) -> list[int | None]:
        named, known = dict(self.factors), {option.name for option in options}
        if unknown := sorted(set(named) - known):
            raise ValueError(
                f"method.allocation.factors must name some of {', '.join(sorted(known))}, got "
                f"{', '.join(unknown)}"
            )
        fixed = {i: ratio * named[o.name] for i, o in enumerate(options) if o.name in named}
        taken = sum(options[i].dense * share for i, share in fixed.items())
        rest = sum(o.dense for i, o in enumerate(options) if i not in fixed)
        left = (ratio * sum(o.dense for o in options) - taken) / rest if rest else 0.0
        shares = [fixed.get(i, left) for i in range(len(options))]
        if not all(0 <= share < 1 for share in shares):
            raise ValueError(
                f"the proportions {named} must leave every matrix between 0 and 1 of its weights "
                f"at ratio {ratio:.4g}"
            )
        targets = [
            (1 - share) * o.full if o.kind == "width" else o.size_for(1 - share)
            for o, share in zip(options, shares, strict=True)
        ]
        return self.rounding.apply(options, targets)
