"""The first size that fits, by halving."""

from collections.abc import Callable


def least(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The least number in (low, high] that fits, where `high` does and what is above one that fits
    does too."""
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle
    return high
