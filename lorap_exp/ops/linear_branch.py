"""A low-rank linear map that makes up for what was taken off a layer (Olica, arXiv 2506.08436).

Shapes: I input features, O output features, R rank.
"""

from typing import Protocol

import torch
from torch import Tensor

from lorap_exp.ops.anchored import positive_cholesky


class MapMoments(Protocol):
    """Per token: E[x x^T], E[y x^T], E[x], E[y] and E[y^2]."""

    second: Tensor
    cross: Tensor
    mean: Tensor
    target: Tensor
    square: Tensor


def linearity(moments: MapMoments) -> Tensor:
    """Correlation of every output with its best affine prediction from the input, (O,) float64."""
    second = moments.second - torch.outer(moments.mean, moments.mean)
    cross = moments.cross - torch.outer(moments.target, moments.mean)
    factor = positive_cholesky(second)
    explained = (torch.cholesky_solve(cross.mT, factor).mT * cross).sum(1)
    variance = moments.square - moments.target.square()
    return (explained / variance.clamp_min(torch.finfo(torch.float64).tiny)).clamp(0, 1).sqrt()


def branch_factors(
    second_II: Tensor, cross_OI: Tensor, correlation_O: Tensor, rank: int, ridge: float
) -> tuple[Tensor, Tensor]:
    """L (O, R) and R (R, I), float64, of the ridge solution of E = what was taken away.

    Outputs whose prediction correlates less than the mean count less: they are weighted by
    sigmoid((corr - mean) / .05) (public code).

    Args:
        second_II: E[x x^T].
        cross_OI: E[e x^T], e the output that went.
        correlation_O: of every output with its linear prediction.
        rank: of the branch.
        ridge: relative to the mean of the diagonal of E[x x^T].
    """
    S = second_II.double()
    strength = ridge * S.diagonal().mean()
    factor = positive_cholesky(S + strength * torch.eye(len(S), dtype=S.dtype, device=S.device))
    solution = torch.cholesky_solve(cross_OI.double().mT, factor).mT
    weights = torch.sigmoid((correlation_O - correlation_O.mean()) / 0.05)
    left, values, right = torch.linalg.svd(solution * weights[:, None], full_matrices=False)
    roots = values[:rank].sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]
