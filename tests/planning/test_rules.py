import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorap_exp.planning.plan import BlockShape, MatrixShape, Price, assemble
from lorap_exp.planning.rules import PublishedRanks, UniformRanks, Widths

ATTENTION = ("q", "k", "v", "o")


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
    sizes = PublishedRanks(3).allocate(attention(hidden), ratio)
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
            PublishedRanks(share).allocate(attention(hidden), ratio)
        return
    value_output = None if dense else k_max
    query_key = None if k_min >= hidden / 2 else k_min
    assert PublishedRanks(share).allocate(attention(hidden), ratio) == (
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
        sizes = PublishedRanks(share).allocate(prices, ratio)
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
    for rule in (UniformRanks(), PublishedRanks(3)):
        assert rule.allocate(attention(64), 0.0) == [None] * 4


def test_a_rank_of_zero_is_named() -> None:
    with pytest.raises(ValueError, match="rank of q in block 0 must be at least 1, got 0"):
        PublishedRanks(1000).allocate(attention(64), 0.5)


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
    assert Widths(0.01).allocate(prices, ratio) == [width]
    assert Widths(0.0).allocate(prices, 0.0) == [None]


def test_no_channel_left_is_named() -> None:
    prices = [Price(0, "mlp", "width", 3000, 30, 100)]
    with pytest.raises(ValueError, match="below 1 to leave channels in block 0"):
        Widths(0.1).allocate(prices, 0.95)


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
