import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorap_exp.planning.depth import DepthShares
from lorap_exp.planning.options import Option
from lorap_exp.planning.rounding import Rounding


@given(
    first=st.floats(0.2, 1),
    ratio=st.floats(0.01, 0.6),
    costs=st.lists(st.integers(100, 1000), min_size=2, max_size=40),
)
def test_the_mean_is_the_ratio_and_it_grows_by_the_logarithm(
    first: float, ratio: float, costs: list[int]
) -> None:
    by_block = dict(enumerate(costs))
    rule = DepthShares(first, Rounding())
    try:
        ratios = rule.ratios(by_block, ratio)
    except ValueError as error:
        assert "first must be higher" in str(error)
        return
    total = sum(ratios[block] * cost for block, cost in by_block.items())
    assert total == pytest.approx(ratio * sum(costs))
    assert ratios[0] == pytest.approx(first * ratio)
    last = ratios[len(costs) - 1]
    for block, found in ratios.items():
        grown = math.log(block + 1) / math.log(len(costs))
        assert found == pytest.approx(ratios[0] + (last - ratios[0]) * grown)


def test_sizes_meet_the_ratio_over_all_blocks() -> None:
    options = [Option(block, "ffn", "width", 3000, 3, 1000) for block in range(8)]
    sizes = DepthShares(0.5, Rounding(uniform=False)).choose(options, 0.3)
    kept = sum(option.cost(size) for option, size in zip(options, sizes, strict=True))
    assert kept == pytest.approx(0.7 * 8 * 3000, abs=4)
    widths = [size or 1000 for size in sizes]
    assert widths == sorted(widths, reverse=True) and widths[0] == 850


def test_too_steep_a_growth_is_named() -> None:
    with pytest.raises(ValueError, match=r"the last block would lose 1\.\d+ of its parameters"):
        DepthShares(0.0, Rounding()).ratios(dict.fromkeys(range(30), 1), 0.8)
