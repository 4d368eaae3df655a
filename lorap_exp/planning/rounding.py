"""From target sizes to whole multiples: rounding lives here, once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorap_exp.planning.options import Option


@dataclass(frozen=True)
class Rounding:
    """Sizes as multiples of `multiple` (1, 8, 64, 128).

    When `uniform`, every block rounds down to the same size. Otherwise the remainder is carried
    from block to block, so that the sum over blocks meets the target to one multiple.
    """

    multiple: int = 1
    uniform: bool = True

    def step(self, option: Option) -> int:
        """Multiples of this are the sizes that an option can have."""
        return math.lcm(self.multiple, option.step)

    def apply(self, options: Sequence[Option], targets: Sequence[float | None]) -> list[int | None]:
        """Rounded sizes; None stays None, and a rank that saves nothing becomes None.

        Raises:
            ValueError: a size below one multiple, with the matrix and the block.
        """
        carried: dict[str, float] = {}
        sizes: list[int | None] = []
        for option, target in zip(options, targets, strict=True):
            if target is None:
                sizes.append(None)
                continue
            wanted = target + (0.0 if self.uniform else carried.get(option.name, 0.0))
            step = self.step(option)
            size = math.floor(wanted / step + 1e-9) * step
            carried[option.name] = wanted - size
            sizes.append(self._checked(option, size))
        return sizes

    def _checked(self, option: Option, size: int) -> int | None:
        step = self.step(option)
        if size < step:
            raise ValueError(
                f"the {option.kind} of {option.name} in block {option.block} must be at least "
                f"{step}, got {size}: lower the ratio, choose a more even allocation or "
                f"round to a smaller multiple"
            )
        return None if size >= option.break_even else size


def nearest(size: int, full: int, multiple: int) -> int:
    """The multiple next to a size, at least one of it and at most the full size."""
    return min(max(round(size / multiple), 1) * multiple, full)
