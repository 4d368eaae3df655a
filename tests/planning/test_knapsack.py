"""Sizes from measured damage, against brute force."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorap_exp.planning.knapsack import Knapsack
from lorap_exp.planning.options import Option, rank_option
from lorap_exp.planning.rounding import Rounding
from lorap_exp.planning.rules import Uniform
from lorap_exp.planning.shapes import MatrixShape

EXACT = Rounding(1, uniform=False)
RULE = Knapsack(EXACT)


def falling(draw: random.Random, count: int, *, convex: bool) -> tuple[float, ...]:
    """Damages of sizes 0, 1, ..., count that fall to zero; whole numbers, so sums are exact."""
    steps = [draw.randint(1, 99) for _ in range(count)]
    if convex:
        steps.sort()
    return tuple(float(x) for x in reversed([0, *itertools.accumulate(steps)]))


def channels(draw: random.Random, block: int, units: int) -> Option:
    damage = falling(draw, 5, convex=True)
    return Option(block, "ffn", "width", 5 * units, units, 5, damage=damage)


def matrix(draw: random.Random, block: int) -> Option:
    shape = MatrixShape("q", draw.randint(3, 6), draw.randint(3, 6))
    option = rank_option(block, shape, draw.choice(["pair", "pivoted"]))
    return replace(option, damage=falling(draw, option.full, convex=False))


def sizes_of(option: Option) -> list[int | None]:
    return [*(s for s in range(1, option.full + 1) if s < option.break_even), None]


def damage(options: Sequence[Option], sizes: Sequence[int | None]) -> float:
    lost = 0.0
    for option, size in zip(options, sizes, strict=True):
        assert option.damage is not None
        lost += option.damage[option.full if size is None else size]
    return lost


def cost(options: Sequence[Option], sizes: Sequence[int | None]) -> int:
    return sum(option.cost(size) for option, size in zip(options, sizes, strict=True))


def best(options: Sequence[Option], budget: float) -> float:
    """The least damage of all choices that cost at most the budget."""
    choices = itertools.product(*map(sizes_of, options))
    return min(
        (damage(options, sizes) for sizes in choices if cost(options, sizes) <= budget),
        default=float("inf"),
    )


@given(seed=st.integers(0, 10**6), share=st.floats(0.2, 1))
def test_equal_units_get_the_optimum(seed: int, share: float) -> None:
    draw = random.Random(seed)
    options = [channels(draw, block, 7) for block in range(4)]
    budget = int(share * sum(option.dense for option in options))
    sizes = RULE.spend(options, budget)
    assert cost(options, sizes) <= budget
    assert damage(options, sizes) == best(options, budget)


@given(seed=st.integers(0, 10**6), share=st.floats(0.1, 1))
def test_at_most_one_step_from_the_optimum(seed: int, share: float) -> None:
    """Ranks and widths together, whatever the curve of their damages."""
    draw = random.Random(seed)
    options = [matrix(draw, 0), matrix(draw, 1), channels(draw, 0, draw.randint(3, 9))]
    least = cost(options, [1, 1, 1])
    budget = least + int(share * (sum(option.dense for option in options) - least))
    sizes = RULE.spend(options, budget)
    assert cost(options, sizes) <= budget
    step = max(option.dense - option.cost(1) for option in options)
    assert best(options, budget) <= damage(options, sizes) <= best(options, budget - step)


@settings(max_examples=25)  # each tries every budget
@given(seed=st.integers(0, 10**6))
def test_a_larger_budget_never_costs_more_damage(seed: int) -> None:
    draw = random.Random(seed)
    options = [matrix(draw, 0), matrix(draw, 1), channels(draw, 1, 4)]
    least, whole = cost(options, [1, 1, 1]), sum(option.dense for option in options)
    found = [damage(options, RULE.spend(options, b)) for b in range(least, whole + 1)]
    assert found == sorted(found, reverse=True)
    assert found[-1] == 0


@given(seed=st.integers(0, 10**6), ratio=st.floats(0.05, 0.7), floor=st.floats(0, 1))
def test_evidence_moves_parameters_and_the_floor_holds(
    seed: int, ratio: float, floor: float
) -> None:
    """What is spent with evidence is what was planned without, to one step of one option."""
    draw = random.Random(seed)
    blind = [
        rank_option(block, MatrixShape(name, 48, 32)) for block in range(3) for name in ("q", "v")
    ]
    options = [replace(o, damage=falling(draw, o.full, convex=True)) for o in blind]
    rule = Knapsack(EXACT, floor)
    planned = rule.choose(blind, ratio)
    assert planned == Uniform(EXACT).choose(blind, ratio)
    sizes = rule.choose(options, ratio)
    assert cost(options, sizes) <= cost(blind, planned) < cost(options, sizes) + 48 + 32
    for option, size in zip(options, sizes, strict=True):
        assert option.cost(size) > floor * (1 - ratio) * option.dense - option.per_unit


def test_one_option_without_damage_makes_all_uniform() -> None:
    draw = random.Random(0)
    options = [channels(draw, block, 3) for block in range(3)]
    some = [options[0], replace(options[1], damage=None), options[2]]
    assert RULE.choose(some, 0.4) == [3, 3, 3]
    assert RULE.choose(options, 0.4) != [3, 3, 3]


def test_the_whole_budget_goes_where_the_damage_is() -> None:
    harmless = Option(0, "ffn", "width", 50, 10, 5, damage=(0.0,) * 6)
    harmful = Option(1, "ffn", "width", 50, 10, 5, damage=(5.0, 4.0, 3.0, 2.0, 1.0, 0.0))
    assert RULE.choose([harmless, harmful], 0.4) == [1, None]


def test_sizes_are_multiples() -> None:
    draw = random.Random(0)
    options = [
        Option(b, "ffn", "width", 640, 10, 64, damage=falling(draw, 64, convex=True))
        for b in range(3)
    ]
    sizes = Knapsack(Rounding(8, uniform=False)).choose(options, 0.5)
    assert all(size is None or size % 8 == 0 for size in sizes)


def test_a_budget_below_the_smallest_sizes_is_named() -> None:
    options = [channels(random.Random(0), 0, 10)]
    with pytest.raises(ValueError, match="smallest sizes need 10 parameters, but the budget is 9"):
        RULE.spend(options, 9)
