"""One threshold over the units of all options."""

import random

from hypothesis import given
from hypothesis import strategies as st

from lorap_exp.planning.options import Option
from lorap_exp.planning.rounding import Rounding
from lorap_exp.planning.rules import Threshold


def option(block: int, scores: list[float], cost: int, step: int = 1, fixed: int = 0) -> Option:
    """Units that cost alike; the damage of a size is the sum of the scores that it leaves out."""
    lost, damage = 0.0, [0.0]
    for score in sorted(scores):
        lost += score
        damage.append(lost)
    full = len(scores)
    return Option(
        block, "ffn", "width", cost * full, cost, full,
        step=step, fixed=fixed, damage=tuple(reversed(damage)),
    )  # fmt: skip


@given(seed=st.integers(0, 10_000), ratio=st.floats(0.05, 0.8), fixed=st.integers(0, 5))
def test_the_lowest_units_of_all_options_go(seed: int, ratio: float, fixed: int) -> None:
    """Against units in one list: nothing that stays is worth less than anything that went."""
    draw = random.Random(seed)
    found = [[draw.gauss(0, 1 + i) for _ in range(20)] for i in range(3)]
    options = [option(i, scores, 10, fixed=fixed) for i, scores in enumerate(found)]
    sizes = Threshold(Rounding()).choose(options, ratio)
    kept = [size or 20 for size in sizes]
    gone = [sorted(scores)[: 20 - n] for scores, n in zip(found, kept, strict=True)]
    highest = max((score for scores in gone for score in scores), default=-1e9)
    for scores, n in zip(found, kept, strict=True):
        stays = sorted(scores)[20 - n :]
        assert n == 1 or min(stays) >= highest
    cost = sum(o.cost(size) for o, size in zip(options, sizes, strict=True))
    budget = (1 - ratio) * 600
    assert cost <= budget or kept == [1, 1, 1]
    assert cost > budget - 10 - fixed, "one unit more would have been too many"


def test_steps_that_do_not_divide_the_size() -> None:
    """176 channels in multiples of 64: 176, 128, 64, one after the other."""
    scores = [float(i) for i in range(176)]
    one = [option(0, scores, 3, step=64), option(1, [1e6] * 176, 3, step=64)]
    budget = {0.1: 128, 0.2: 64}
    for ratio, size in budget.items():
        assert Threshold(Rounding()).choose(one, ratio) == [size, None]


def test_without_damage_the_shares_are_equal() -> None:
    plain = [Option(block, "ffn", "width", 300, 3, 100) for block in range(3)]
    assert Threshold(Rounding(uniform=False)).choose(plain, 0.25) == [75, 75, 75]
