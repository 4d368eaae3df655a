import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorap_exp.planning.options import Option, rank_option
from lorap_exp.planning.rounding import Rounding
from lorap_exp.planning.rules import LayerShares, PublishedRanks, PublishedWidths, Uniform
from lorap_exp.planning.shapes import MatrixShape

EXACT = Rounding()


def attention(hidden: int, kv: int | None = None, heads: int | None = None) -> list[Option]:
    kv, wide = kv or hidden, heads or hidden
    shapes = {"q": (wide, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, wide)}
    return [rank_option(0, MatrixShape(name, *size)) for name, size in shapes.items()]


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
    sizes = PublishedRanks(3, EXACT).choose(attention(hidden), ratio)
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
            PublishedRanks(share, EXACT).choose(attention(hidden), ratio)
        return
    value_output = None if dense else k_max
    query_key = None if k_min >= hidden / 2 else k_min
    assert PublishedRanks(share, EXACT).choose(attention(hidden), ratio) == (
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
    options = attention(int(wide / width_ratio), kv, wide)
    dense = sum(option.dense for option in options)
    try:
        sizes = PublishedRanks(share, EXACT).choose(options, ratio)
    except ValueError:
        return
    kept = sum(
        option.dense if size is None else size * option.per_unit
        for option, size in zip(options, sizes, strict=True)
    )
    step = 2 * sum(option.per_unit for option in options)
    saturated = share < 1 and (1 - ratio) * 2 / (1 + share) >= 1
    assert kept <= (1 - ratio) * dense + step
    assert saturated or kept >= (1 - ratio) * dense - step


def test_a_rank_that_saves_nothing_stays_dense() -> None:
    for rule in (Uniform(EXACT), PublishedRanks(3, EXACT)):
        assert rule.choose(attention(64), 0.0) == [None] * 4


def test_a_rank_of_zero_is_named() -> None:
    with pytest.raises(ValueError, match="rank of q in block 0 must be at least 1, got 0"):
        PublishedRanks(1000, EXACT).choose(attention(64), 0.5)


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
    options = [Option(0, "ffn", "width", 3 * 4096 * channels, 3 * 4096, channels)]
    assert PublishedWidths(0.01, EXACT).choose(options, ratio) == [width]
    assert PublishedWidths(0.0, EXACT).choose(options, 0.0) == [None]


def test_no_channel_left_is_named() -> None:
    options = [Option(0, "ffn", "width", 3000, 30, 100)]
    with pytest.raises(ValueError, match="below 1 to leave channels in block 0"):
        PublishedWidths(0.1, EXACT).choose(options, 0.95)


def blocks(count: int, full: int, per_unit: int = 10) -> list[Option]:
    return [Option(b, "ffn", "width", full * per_unit, per_unit, full) for b in range(count)]


@pytest.mark.parametrize("multiple", [1, 8, 64, 128])
@pytest.mark.parametrize("uniform", [True, False])
def test_sizes_are_multiples_and_meet_the_budget(multiple: int, uniform: bool) -> None:
    rule = Uniform(Rounding(multiple, uniform))
    sizes = rule.choose(blocks(12, 1000), 0.35)
    assert all(size is not None and size % multiple == 0 for size in sizes)
    kept = sum(size or 0 for size in sizes)
    if uniform:
        assert len(set(sizes)) == 1
        assert 0 <= 12 * 650 - kept < 12 * multiple
    else:
        assert 0 <= 12 * 650 - kept < multiple


def test_a_size_below_one_multiple_is_named() -> None:
    with pytest.raises(ValueError, match="width of ffn in block 0 must be at least 128, got 0"):
        Uniform(Rounding(128)).choose(blocks(1, 100), 0.5)


IMPORTANCE = st.lists(st.floats(-2, 2), min_size=2, max_size=8)


@given(importance=IMPORTANCE, ratio=st.floats(0.05, 0.8), seed=st.integers(0, 99))
def test_layer_shares_have_the_mean_and_the_cap(
    importance: list[float], ratio: float, seed: int
) -> None:
    rule = LayerShares(temperature=0.3, cap=0.85, rounding=EXACT)
    costs = {block: 1000 + 37 * (seed * block % 11) for block in range(len(importance))}
    ratios = rule.ratios(costs, dict(enumerate(importance)), ratio)
    spent = sum(ratios[block] * cost for block, cost in costs.items())
    assert spent == pytest.approx(ratio * sum(costs.values()))
    assert all(0 <= share <= 0.85 for share in ratios.values())
    for one, other in zip(importance, importance[1:], strict=False):
        a, b = ratios[importance.index(one)], ratios[importance.index(other)]
        assert a == pytest.approx(b) or (a < b) == (one > other)


def test_layer_shares_without_the_cap_are_a_softmax() -> None:
    rule = LayerShares(temperature=0.5, cap=0.99, rounding=EXACT)
    found = rule.ratios(dict.fromkeys(range(3), 10), {0: 0.1, 1: 0.2, 2: 0.4}, 0.3)
    weights = [math.exp(-x / 0.5) for x in (0.1, 0.2, 0.4)]
    expected = [3 * 0.3 * weight / sum(weights) for weight in weights]
    assert list(found.values()) == pytest.approx(expected)


def test_layer_shares_without_evidence_or_room() -> None:
    rule = LayerShares(temperature=0.3, cap=0.5, rounding=EXACT)
    assert rule.ratios({0: 10, 1: 20}, {0: 0.1, 1: None}, 0.4) == {0: 0.4, 1: 0.4}
    with pytest.raises(ValueError, match="cap of a layer must be at least the ratio, got 0.5"):
        rule.ratios({0: 10, 1: 20}, {0: 0.1, 1: 0.2}, 0.6)


@given(importance=IMPORTANCE, ratio=st.floats(0.1, 0.7))
def test_layer_shares_move_parameters_and_keep_their_number(
    importance: list[float], ratio: float
) -> None:
    rule = LayerShares(0.3, 0.85, Rounding(1, uniform=False))
    blind = [
        option
        for block in range(len(importance))
        for option in (
            Option(block, "ffn", "width", 3 * 64 * 500, 3 * 64, 500),
            rank_option(block, MatrixShape("q", 300, 200)),
        )
    ]
    told = [replace(option, importance=importance[option.block]) for option in blind]

    def cost(sizes: list[int | None]) -> int:
        return sum(option.cost(size) for option, size in zip(blind, sizes, strict=True))

    planned, carried = cost(rule.choose(blind, ratio)), cost(rule.choose(told, ratio))
    assert abs(planned - carried) <= 3 * 64 + 500
    assert carried <= (1 - ratio) * sum(option.dense for option in blind)
