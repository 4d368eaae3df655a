from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorap_exp.ops.low_rank import apply_root, project_outputs, weighted_error


def weight(outs: int, ins: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(outs, ins, generator=torch.Generator().manual_seed(seed))


def moment(ins: int, tokens: int = 500, seed: int = 1) -> torch.Tensor:
    mix = weight(ins, ins, seed)
    x = weight(tokens, ins, seed + 1) @ mix
    return x.mT @ x / tokens


METRICS: dict[str, Callable[[int], torch.Tensor | None]] = {
    "identity": lambda ins: None,
    "diagonal": lambda ins: moment(ins).diagonal(),
    "full": moment,
    "singular": lambda ins: moment(ins, tokens=3),
    "zero": lambda ins: torch.zeros(ins),
}


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
@pytest.mark.parametrize("metric", METRICS)
def test_full_rank_restores_the_weight(shape: tuple[int, int], metric: str) -> None:
    W = weight(*shape)
    L, R = project_outputs(W, METRICS[metric](shape[1]), min(shape))
    if metric in ("singular", "zero") and shape[0] > shape[1]:
        assert weighted_error(W, L @ R, METRICS[metric](shape[1])) < 1e-4
    else:
        torch.testing.assert_close(L @ R, W, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
@pytest.mark.parametrize("metric", ["identity", "diagonal", "full"])
@pytest.mark.parametrize("rank", [1, 5, 11])
def test_error_equals_the_discarded_singular_values(
    shape: tuple[int, int], metric: str, rank: int
) -> None:
    W, M = weight(*shape), METRICS[metric](shape[1])
    L, R = project_outputs(W, M, rank)
    discarded = torch.linalg.svdvals(apply_root(W, M))[rank:].norm()
    torch.testing.assert_close(weighted_error(W, L @ R, M), discarded, rtol=1e-5, atol=1e-6)


def test_diagonal_metric_equals_the_textbook_awsvd() -> None:
    W, d = weight(24, 24), weight(1, 24, 3)[0].abs() + 0.1
    U, S, Vh = torch.linalg.svd(W * d, full_matrices=False)
    textbook = (U[:, :7] * S[:7]) @ Vh[:7] / d
    L, R = project_outputs(W, d**2, 7)
    torch.testing.assert_close(L @ R, textbook, atol=1e-5, rtol=1e-4)


def test_full_metric_equals_the_whitened_svd() -> None:
    W, M = weight(24, 20), moment(20)
    root = torch.linalg.cholesky(M.double()).float()
    U, S, Vh = torch.linalg.svd(W @ root, full_matrices=False)
    whitened = (U[:, :6] * S[:6]) @ Vh[:6] @ torch.linalg.inv(root)
    L, R = project_outputs(W, M, 6)
    torch.testing.assert_close(L @ R, whitened, atol=1e-3, rtol=1e-3)


def test_unit_weights_equal_plain_svd() -> None:
    W = weight(10, 14)
    plain = torch.matmul(*project_outputs(W, None, 4))
    unit = torch.matmul(*project_outputs(W, torch.ones(14), 4))
    torch.testing.assert_close(unit, plain)


@given(rank=st.integers(1, 8), seed=st.integers(0, 50))
def test_no_other_projection_of_the_rank_is_better(rank: int, seed: int) -> None:
    W, M = weight(9, 8, seed), moment(8, seed=seed + 1)
    best = weighted_error(W, torch.matmul(*project_outputs(W, M, rank)), M)
    basis = torch.linalg.qr(weight(9, rank, seed + 7)).Q
    assert best <= weighted_error(W, basis @ (basis.mT @ W), M) + 1e-6


def test_arguments_are_not_changed() -> None:
    W, d = weight(6, 6), torch.ones(6)
    before = W.clone()
    project_outputs(W, d, 2)
    assert torch.equal(W, before) and torch.equal(d, torch.ones(6))


@pytest.mark.parametrize("rank", [0, 7])
def test_rank_out_of_range_is_named(rank: int) -> None:
    with pytest.raises(ValueError, match=rf"rank must lie in \[1, 6\].*got {rank}"):
        project_outputs(weight(6, 9), None, rank)


def test_non_finite_input_is_an_error() -> None:
    with pytest.raises(ValueError, match="not finite"):
        project_outputs(weight(6, 6) * float("nan"), None, 2)
