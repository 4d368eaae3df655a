"""Factors towards original outputs, and the refit, against least squares on the samples."""

import pytest
import torch

from lorap_exp.ops.anchored import anchored_factors, anchored_target, positive_cholesky, refit
from lorap_exp.ops.low_rank import pivot, project_outputs


def streams() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    original = torch.randn(400, 10).double() @ torch.randn(10, 10).double()
    return original + 0.3 * torch.randn(400, 10).double(), original


def moments(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.mT @ x / len(x), y.mT @ x / len(x)


@pytest.mark.parametrize("blend", [0.0, 0.5, 1.0])
def test_the_target_is_least_squares_on_the_blend(blend: float) -> None:
    x, y = streams()
    W = torch.randn(6, 10).double()
    wanted = ((1 - blend) * x + blend * y) @ W.mT
    slow = torch.linalg.lstsq(x, wanted).solution.mT
    torch.testing.assert_close(anchored_target(W, *moments(x, y), blend), slow)


@pytest.mark.parametrize("blend", [0.0, 0.7])
def test_factors_beat_random_ones_and_reach_the_eckart_young_bound(blend: float) -> None:
    x, y = streams()
    W, rank = torch.randn(6, 10).double(), 3
    S, C = moments(x, y)
    left, right = anchored_factors(W, S, C, blend, rank)
    wanted = ((1 - blend) * x + blend * y) @ W.mT
    error = (x @ (left @ right).double().mT - wanted).square().sum() / len(x)
    target = anchored_target(W, S, C, blend)
    unavoidable = (x @ target.mT - wanted).square().sum() / len(x)
    tail = torch.linalg.svdvals(target @ positive_cholesky(S))[rank:].square().sum()
    torch.testing.assert_close(error, unavoidable + tail, rtol=1e-5, atol=1e-6)


def test_without_a_blend_it_is_the_plain_weighted_projection() -> None:
    x, y = streams()
    W = torch.randn(6, 10)
    S, C = moments(x, y)
    left, right = anchored_factors(W, S, C, 0.0, 4)
    plain = project_outputs(W, S, 4)
    torch.testing.assert_close(left @ right, plain[0] @ plain[1], rtol=1e-4, atol=1e-5)


def test_refit_is_least_squares_and_a_large_ridge_changes_nothing() -> None:
    x, _ = streams()
    y = torch.randn(400, 6).double()
    S, C = moments(x, y)
    before = torch.randn(6, 10).double()
    slow = torch.linalg.lstsq(x, y).solution.mT
    torch.testing.assert_close(refit(S, C, before, 0.0), slow)
    torch.testing.assert_close(refit(S, C, before, 1e9), before, rtol=1e-5, atol=1e-5)

    def error(W: torch.Tensor) -> float:
        return float((x @ W.mT - y).square().sum())

    assert error(slow) <= error(refit(S, C, before, 0.5)) <= error(before)


def test_a_singular_moment_gets_the_least_shift() -> None:
    S = torch.zeros(4, 4).double()
    S[0, 0] = 1.0
    factor = positive_cholesky(S)
    assert torch.isfinite(factor).all() and (factor @ factor.mT - S).norm() < 1e-6
    with pytest.raises(ValueError, match="not finite"):
        positive_cholesky(torch.full((2, 2), float("nan")))


@pytest.mark.parametrize(("outs", "ins", "rank"), [(20, 13, 5), (8, 30, 8), (9, 9, 1)])
def test_pivoted_storage_loses_nothing(outs: int, ins: int, rank: int) -> None:
    torch.manual_seed(2)
    left, right = torch.randn(outs, rank), torch.randn(rank, ins)
    rows, kept, coefficients = pivot(left, right)
    product = left.double() @ right.double()
    others = [row for row in range(outs) if row not in rows.tolist()]
    torch.testing.assert_close(product[rows], kept)
    torch.testing.assert_close(product[others], coefficients @ kept)
    assert kept.numel() + coefficients.numel() == rank * (outs + ins - rank)


def test_dependent_factors_cannot_be_pivoted() -> None:
    with pytest.raises(ValueError, match="lower rank"):
        pivot(torch.ones(6, 2), torch.randn(2, 5))
