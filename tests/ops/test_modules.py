"""Joint compression of modules, against identities and slow references."""

import pytest
import torch

from lorap_exp.ops.modules import (
    refit_columns,
    ridge_leverage,
    root_and_inverse,
    rotary_pair_scores,
    shrunk,
    value_features,
)


def second_moment(features: int, tokens: int = 200, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, features, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(features, features, generator=generator, dtype=torch.float64)
    return x.mT @ x / tokens


def test_refit_is_least_squares_on_the_kept_channels() -> None:
    torch.manual_seed(0)
    X, W = torch.randn(300, 12).double(), torch.randn(5, 12).double()
    kept = torch.tensor([0, 3, 4, 9])
    found = refit_columns(W, X.mT @ X / len(X), kept)
    slow = torch.linalg.lstsq(X[:, kept], X @ W.mT).solution.mT
    torch.testing.assert_close(found, slow)


def test_refit_with_everything_kept_changes_nothing() -> None:
    W, S = torch.randn(5, 12).double(), second_moment(12)
    torch.testing.assert_close(refit_columns(W, S, torch.arange(12)), W)


def test_leverage_is_that_of_the_hat_matrix() -> None:
    S, ridge = second_moment(10), 0.3
    slow = (S @ torch.linalg.inv(S + ridge * torch.eye(10).double())).diagonal()
    torch.testing.assert_close(ridge_leverage(S, ridge), slow)


def test_a_channel_that_others_predict_has_the_least_leverage() -> None:
    S = second_moment(6)
    mix = torch.eye(7, 6).double()
    mix[6] = torch.tensor([0.5, 0.5, 0, 0, 0, 0])
    assert ridge_leverage(mix @ S @ mix.mT, 1e-6).argmin() in (0, 1, 6)


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_value_features_give_the_best_approximation_of_every_rank(rank: int) -> None:
    torch.manual_seed(1)
    outputs, M = torch.randn(3, 20, 8).double(), second_moment(8)
    turn, readers, energies = value_features(outputs, M)
    root, _ = root_and_inverse(M)
    found = torch.stack([readers[g][:, :rank] @ turn[:rank] for g in range(3)])
    error = sum(((outputs[g] - found[g]) @ root).norm() ** 2 for g in range(3))
    best = torch.linalg.svdvals(outputs.flatten(0, 1) @ root)[rank:].square().sum()
    torch.testing.assert_close(torch.as_tensor(error), best, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(energies[rank:].sum(), best, atol=1e-9, rtol=1e-9)


def test_pair_scores_add_both_halves_and_all_query_heads() -> None:
    q, k = torch.rand(2, 8).double(), torch.rand(8).double()
    slow = [sum(q[g, j] * k[j] + q[g, j + 4] * k[j + 4] for g in range(2)) ** 0.5 for j in range(4)]
    torch.testing.assert_close(rotary_pair_scores(q, k), torch.stack(slow))


def test_shrinkage_keeps_the_diagonal() -> None:
    S = second_moment(9)
    half = shrunk(S, 0.5)
    torch.testing.assert_close(half.diagonal(), S.diagonal())
    assert torch.allclose(half - torch.diag(half.diagonal()), (S - torch.diag(S.diagonal())) / 2)
    assert torch.equal(shrunk(S, 1.0), torch.diag(S.diagonal()))
