"""From target sizes to whole multiples: rounding lives here, once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorap_exp.planning.plan import Price


@dataclass(frozen=True)
class Rounding:
    """Sizes as multiples of `multiple` (1, 8, 64, 128).

    When `uniform`, every block rounds down to the same size. Otherwise the remainder is carried
    from block to block, so that the sum over blocks meets the target to one multiple.
    """

    multiple: int = 1
    uniform: bool = True

    def apply(self, prices: Sequence[Price], targets: Sequence[float | None]) -> list[int | None]:
        """Rounded sizes; None stays None, and a rank that saves nothing becomes None.

        Raises:
            ValueError: a size below one multiple, with the matrix and the block.
        """
        carried: dict[str, float] = {}
        sizes: list[int | None] = []
        for price, target in zip(prices, targets, strict=True):
            if target is None:
                sizes.append(None)
                continue
            wanted = target + (0.0 if self.uniform else carried.get(price.name, 0.0))
            size = math.floor(wanted / self.multiple + 1e-9) * self.multiple
            carried[price.name] = wanted - size
            sizes.append(self._checked(price, size))
        return sizes

    def _checked(self, price: Price, size: int) -> int | None:
        if size < self.multiple:
            raise ValueError(
                f"the {price.kind} of {price.name} in block {price.block} must be at least "
                f"{self.multiple}, got {size}: lower the ratio, choose a more even allocation or "
                f"round to a smaller multiple"
            )
        return None if size >= price.break_even else size
