"""Ratios that grow with depth: what an early layer loses, all later ones inherit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorap_exp.planning.options import Option
from lorap_exp.planning.rounding import Rounding


@dataclass(frozen=True)
class DepthShares:
    """Each block its own ratio, growing with the logarithm of its depth (SlimGPT, 2412.18110).

    Block i of n loses s_0 + (s_n-1 - s_0) log(i + 1) / log(n) of its parameters. `first` is s_0 as
    a fraction of the ratio; s_n-1 follows, so that all blocks together meet it.
    """

    first: float
    rounding: Rounding

    def choose(self, options: Sequence[Option], ratio: float) -> list[int | None]:
        costs: dict[int, int] = {}
        for option in options:
            costs[option.block] = costs.get(option.block, 0) + option.dense
        ratios = self.ratios(costs, ratio)
        targets = [option.size_for(1 - ratios[option.block]) for option in options]
        return self.rounding.apply(options, targets)

    def ratios(self, costs: dict[int, int], ratio: float) -> dict[int, float]:
        """The ratio of each block; their mean, weighted by cost, is `ratio`.

        Raises:
            ValueError: the last block would have to lose everything.
        """
        if len(costs) < 2:
            return dict.fromkeys(costs, ratio)
        span = math.log(len(costs))
        depths = {block: math.log(i + 1) / span for i, block in enumerate(sorted(costs))}
        mean = sum(costs[block] * depth for block, depth in depths.items()) / sum(costs.values())
        start = self.first * ratio
        last = start + (ratio - start) / mean
        if not last < 1:
            raise ValueError(
                f"first must be higher for this ratio: the last block would lose {last:.3f} of its "
                f"parameters, got {self.first}"
            )
        return {block: start + (last - start) * depth for block, depth in depths.items()}
