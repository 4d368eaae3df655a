import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorap_exp.planning.plan import BlockShape, MatrixShape, Price, assemble
from lorap_exp.planning.rounding import Rounding
from lorap_exp.planning.rules import (
    PublishedRanks,
    PublishedWidths,
    SpectrumRanks,
    UniformRanks,
    UniformWidths,
)

EXACT = Rounding()


def attention(hidden: int, kv: int | None = None, heads: int | None = None) -> list[Price]:
    kv, wide = kv or hidden, heads or hidden
    shapes = {"q": (wide, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, wide)}
    return [
        Price(0, name, "rank", outs * ins, outs + ins, min(outs, ins))
        for name, (outs, ins) in shapes.items()
    ]


@pytest.mark.parametrize(
    ("hidden", "ratio", "query_key", "value_output"),
    [
        (4096, 0.2, 1228, None),
        (4096, 0.25, 1024, None),
        (4096, 0.3, 819, None),
        (4096, 0.5, 512, 1536),
        (5120, 0.2, 1536, None),
        (5120, 0.5, 640, 1920),
        (6656, 0.5, 832, 2496),
    ],
)
def test_published_ranks(
    hidden: int, ratio: float, query_key: int, value_output: int | None
) -> None:
    """The ranks that the published code prints for LLaMA 7B, 13B and 30B."""
    sizes = PublishedRanks(3, EXACT).allocate(attention(hidden), ratio)
    assert sizes == [query_key, query_key, value_output, value_output]


@given(hidden=st.integers(8, 8192), ratio=st.floats(0.01, 0.94), share=st.floats(0.2, 8))
def test_square_matrices_get_exactly_the_published_formula(
    hidden: int, ratio: float, share: float
) -> None:
    k_att = int((1 - ratio) * hidden / 2)
    k_max = int(k_att * 2 * share / (1 + share))
    dense = k_max >= hidden / 2
    paying_for_both = int((1 - ratio) * hidden) - int(hidden / 2)
    k_min = paying_for_both if dense else int(k_att * 2 / (1 + share))
    if k_min < 1 or (not dense and k_max < 1):
        with pytest.raises(ValueError, match="at least 1"):
            PublishedRanks(share, EXACT).allocate(attention(hidden), ratio)
        return
    value_output = None if dense else k_max
    query_key = None if k_min >= hidden / 2 else k_min
    assert PublishedRanks(share, EXACT).allocate(attention(hidden), ratio) == (
        [query_key] * 2 + [value_output] * 2
    )


@given(
    kv_heads=st.sampled_from([1, 2, 3, 4, 8]),
    groups=st.integers(1, 8),
    ratio=st.floats(0.02, 0.8),
    share=st.floats(0.5, 4),
    width_ratio=st.sampled_from([1.0, 1.5, 2.0]),
)
def test_planned_parameters_are_within_one_rounding_step(
    kv_heads: int, groups: int, ratio: float, share: float, width_ratio: float
) -> None:
    """Grouped-query attention too, and heads wider than the hidden size."""
    wide, kv = 64 * kv_heads * groups, 64 * kv_heads
    prices = attention(int(wide / width_ratio), kv, wide)
    dense = sum(price.dense for price in prices)
    try:
        sizes = PublishedRanks(share, EXACT).allocate(prices, ratio)
    except ValueError:
        return
    kept = sum(
        price.dense if size is None else size * price.per_unit
        for price, size in zip(prices, sizes, strict=True)
    )
    step = 2 * sum(price.per_unit for price in prices)
    saturated = share < 1 and (1 - ratio) * 2 / (1 + share) >= 1
    assert kept <= (1 - ratio) * dense + step
    assert saturated or kept >= (1 - ratio) * dense - step


def test_a_rank_that_saves_nothing_stays_dense() -> None:
    for rule in (UniformRanks(EXACT), PublishedRanks(3, EXACT)):
        assert rule.allocate(attention(64), 0.0) == [None] * 4


def test_a_rank_of_zero_is_named() -> None:
    with pytest.raises(ValueError, match="rank of q in block 0 must be at least 1, got 0"):
        PublishedRanks(1000, EXACT).allocate(attention(64), 0.5)


@pytest.mark.parametrize(
    ("channels", "ratio", "width"),
    [
        (11008, 0.2, 8807),
        (11008, 0.3, 7706),
        (11008, 0.5, 5504),
        (13824, 0.2, 11059),
        (13824, 0.3, 9677),
        (13824, 0.5, 6912),
    ],
)
def test_published_widths(channels: int, ratio: float, width: int) -> None:
    prices = [Price(0, "mlp", "width", 3 * 4096 * channels, 3 * 4096, channels)]
    assert PublishedWidths(0.01, EXACT).allocate(prices, ratio) == [width]
    assert PublishedWidths(0.0, EXACT).allocate(prices, 0.0) == [None]


def test_no_channel_left_is_named() -> None:
    prices = [Price(0, "mlp", "width", 3000, 30, 100)]
    with pytest.raises(ValueError, match="below 1 to leave channels in block 0"):
        PublishedWidths(0.1, EXACT).allocate(prices, 0.95)


def test_plan_counts_its_parameters_and_survives_json() -> None:
    matrices = {
        name: MatrixShape(name, outs, ins)
        for name, (outs, ins) in {
            "q": (8, 8),
            "gate": (20, 8),
            "up": (20, 8),
            "down": (8, 20),
        }.items()
    }
    shape = BlockShape(0, matrices)
    query, mlp = Price(0, "q", "rank", 64, 16, 8), Price(0, "mlp", "width", 480, 24, 20)
    plan = assemble(0.4, [shape], [(query, 3), (mlp, 12)])
    assert plan.parameters([shape]) == 3 * 16 + 12 * 24
    assert not plan.is_dense
    assert type(plan).from_json(plan.to_json()) == plan
    assert assemble(0.0, [shape], [(query, None), (mlp, None)]).parameters([shape]) == 64 + 480


def blocks(count: int, full: int, per_unit: int = 10) -> list[Price]:
    return [Price(b, "mlp", "width", full * per_unit, per_unit, full) for b in range(count)]


@pytest.mark.parametrize("multiple", [1, 8, 64, 128])
@pytest.mark.parametrize("uniform", [True, False])
def test_sizes_are_multiples_and_meet_the_budget(multiple: int, uniform: bool) -> None:
    rule = UniformWidths(Rounding(multiple, uniform))
    sizes = rule.allocate(blocks(12, 1000), 0.35)
    assert all(size is not None and size % multiple == 0 for size in sizes)
    kept = sum(size or 0 for size in sizes)
    if uniform:
        assert len(set(sizes)) == 1
        assert 0 <= 12 * 650 - kept < 12 * multiple
    else:
        assert 0 <= 12 * 650 - kept < multiple


def test_a_size_below_one_multiple_is_named() -> None:
    with pytest.raises(ValueError, match="width of mlp in block 0 must be at least 128, got 0"):
        UniformWidths(Rounding(128)).allocate(blocks(1, 100), 0.5)


@given(seed=st.integers(0, 1000), ratio=st.floats(0.1, 0.7), kv=st.sampled_from([16, 32, 64]))
def test_spectrum_ranks_spend_the_budget_and_no_more(seed: int, ratio: float, kv: int) -> None:
    draw = random.Random(seed)
    prices = attention(64, kv)
    energies = [
        sorted((draw.random() ** draw.choice([1, 4, 9]) for _ in range(p.full)), reverse=True)
        for p in prices
    ]
    budget = int((1 - ratio) * sum(price.dense for price in prices))
    sizes = SpectrumRanks(EXACT).refine(prices, energies, budget)
    cost = sum(
        price.dense if size is None else size * price.per_unit
        for price, size in zip(prices, sizes, strict=True)
    )
    assert cost <= budget
    assert all(
        size is None or 1 <= size < p.break_even for p, size in zip(prices, sizes, strict=True)
    )


def test_spectrum_gives_rank_to_the_flat_spectrum() -> None:
    prices = attention(32)
    steep = [2.0**-i for i in range(32)]
    flat = [1.0] * 32
    budget = sum(price.dense for price in prices) // 2
    query, key, value, output = SpectrumRanks(EXACT).refine(
        prices, [steep, flat, steep, steep], budget
    )
    assert key is None or key > max(query or 0, value or 0, output or 0)


def test_spectrum_equals_brute_force_on_two_matrices() -> None:
    prices = attention(8)[:2]
    energies = [[9.0, 4, 2, 1, 0.5, 0.2, 0.1, 0.1], [5.0, 5, 4, 1, 1, 0.5, 0.5, 0.1]]
    budget = 5 * 16

    def lost(ranks: tuple[int, int]) -> float:
        return sum(sum(e[r:]) / sum(e) for e, r in zip(energies, ranks, strict=True))

    best = min(((a, 5 - a) for a in range(2, 4)), key=lost)
    assert tuple(SpectrumRanks(EXACT).refine(prices, energies, budget)) == best
