import pytest

from lorap_exp.planning.search import least


@pytest.mark.parametrize("first", [1, 2, 7, 63, 100])
def test_the_least_that_fits_is_found_by_halving(first: int) -> None:
    asked: list[int] = []

    def fits(number: int) -> bool:
        asked.append(number)
        return number >= first

    assert least(fits, 0, 100) == first
    assert len(asked) <= 7 and 100 not in asked and 0 not in asked
