"""Optimal brain surgeon against the textbook: one unit at a time, everything inverted anew."""

import pytest
import torch
from torch import Tensor

from lorap_exp.ops.surgeon import damped, prune_units, removal_errors


def problem(outs: int = 5, ins: int = 12) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    mix = torch.randn(ins, ins, dtype=torch.float64)
    x = torch.randn(200, ins, dtype=torch.float64) @ mix
    return torch.randn(outs, ins, dtype=torch.float64), x.mT @ x / len(x)


def refit(W: Tensor, H: Tensor, kept: list[int]) -> Tensor:
    """Least squares on the kept columns, written out by the normal equations."""
    return W @ H[:, kept] @ torch.linalg.inv(H[kept][:, kept])


def error(W: Tensor, H: Tensor, kept: list[int], columns: Tensor) -> Tensor:
    change = -W.clone()
    change[:, kept] += columns
    return torch.trace(change @ H @ change.mT)


@pytest.mark.parametrize("width", [1, 3])
def test_the_error_of_a_unit_is_what_its_best_removal_leaves(width: int) -> None:
    W, second = problem()
    H = damped(second, 0.01)
    errors = removal_errors(W, torch.linalg.inv(H), width)
    assert len(errors) == 12 // width
    for unit, found in enumerate(errors):
        kept = [c for c in range(12) if c // width != unit]
        torch.testing.assert_close(found, error(W, H, kept, refit(W, H, kept)))


@pytest.mark.parametrize(("width", "keep"), [(1, 5), (1, 11), (2, 2), (3, 1)])
def test_one_unit_a_round_is_the_greedy_textbook(width: int, keep: int) -> None:
    W, second = problem()
    H, units = damped(second, 0.01), 12 // width
    left = list(range(units))

    def columns(some: list[int]) -> list[int]:
        return [unit * width + j for unit in some for j in range(width)]

    while len(left) > keep:
        costs = {}
        for unit in left:
            kept = columns([other for other in left if other != unit])
            costs[unit] = error(W, H, kept, refit(W, H, kept)).item()
        left.remove(min(costs, key=lambda unit: costs[unit]))
    alive, found = prune_units(W, second, keep=keep, units=units, rounds=units, ridge=0.01)
    assert alive.tolist() == left
    torch.testing.assert_close(found, refit(W, H, columns(left)))


@pytest.mark.parametrize("rounds", [1, 4])
def test_the_kept_columns_are_least_squares(rounds: int) -> None:
    W, second = problem()
    kept, columns = prune_units(W, second, keep=7, units=12, rounds=rounds, ridge=0.01)
    H = damped(second, 0.01)
    chosen = kept.tolist()
    best = error(W, H, chosen, columns)
    torch.testing.assert_close(columns, refit(W, H, chosen))
    for _ in range(5):
        assert error(W, H, chosen, columns + 0.01 * torch.randn_like(columns)) > best


def test_keeping_everything_changes_nothing() -> None:
    W, second = problem()
    kept, columns = prune_units(W, second, keep=4, units=4, rounds=3, ridge=0.01)
    assert kept.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(columns, W)


def test_a_column_that_repeats_another_goes_for_free() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 6, dtype=torch.float64)
    x[:, 4] = x[:, 1]
    W = torch.randn(3, 6, dtype=torch.float64)
    kept, columns = prune_units(W, x.mT @ x / 500, keep=5, units=6, rounds=1, ridge=1e-8)
    assert len({1, 4} & set(kept.tolist())) == 1
    torch.testing.assert_close(x[:, kept] @ columns.mT, x @ W.mT, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_is_named() -> None:
    W, second = problem()
    with pytest.raises(ValueError, match=r"keep must lie in \[1, 12\], got 0"):
        prune_units(W, second, keep=0, units=12, rounds=1, ridge=0.01)
    with pytest.raises(ValueError, match="zero or not finite"):
        prune_units(W, second * 0, keep=2, units=12, rounds=1, ridge=0.01)
