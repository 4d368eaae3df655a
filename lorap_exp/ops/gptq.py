"""Rounding of weights to integers with shared scales: each to nearest, or with error feedback.

W ~ s q with integers q of b bits, from -2^(b-1) to 2^(b-1) - 1, and one scale s for each group of
consecutive inputs of a row.

Shapes: O outputs, I inputs, G groups of I / G inputs each.
"""

import torch
from torch import Tensor

from lorap_exp.ops.surgeon import damped

COLUMNS = 128
"""Columns whose errors reach the later ones in one product."""


def group_scales(W_OI: Tensor, bits: int, group: int) -> Tensor:
    """Scale of each group, (O, G) in the weight's dtype: its largest magnitude over (2^b - 1) / 2.

    A group of zeros has the scale one. `group` divides I.
    """
    largest = W_OI.float().unflatten(1, (-1, group)).abs().amax(-1)
    scale = (largest / ((2**bits - 1) / 2)).to(W_OI.dtype)
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def nearest(W_OI: Tensor, scale_OG: Tensor, bits: int) -> Tensor:
    """The nearest integers (O, I), int8."""
    grouped = W_OI.double().unflatten(1, (scale_OG.shape[1], -1))
    return _integers(grouped, scale_OG.double()[..., None], bits).flatten(1).to(torch.int8)


def restored(q_OI: Tensor, scale_OG: Tensor) -> Tensor:
    """s q, (O, I) in the dtype of the scales."""
    grouped = q_OI.to(scale_OG.dtype).unflatten(1, (scale_OG.shape[1], -1))
    return (grouped * scale_OG[..., None]).flatten(1)


def feed_back(
    W_OI: Tensor, second_II: Tensor, scale_OG: Tensor, *, bits: int, ridge: float
) -> Tensor:
    """GPTQ: integers (O, I), int8, one column after the other, at small tr((sq - W) H (sq - W)^T).

    What is lost by rounding a column is made up for by the columns that are not rounded yet: they
    change by -(w - s q) U_i: / U_ii, with U the upper Cholesky factor of H^-1. Columns come in the
    order of falling second moments; scales are those of the original groups ("act order" and
    "static groups" of the public code). A diagonal H gives the nearest integers. Float64.

    Source: Frantar et al., arXiv 2210.17323, algorithm 1.

    Args:
        W_OI: weight, any floating dtype.
        second_II: E[x x^T] of its input.
        scale_OG: of the groups.
        bits: of an integer.
        ridge: of H, relative to its mean diagonal.

    Raises:
        ValueError: a moment that is zero or not finite.
    """
    H = damped(second_II, ridge)
    order = H.diagonal().argsort(descending=True, stable=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(H[order][:, order]))
    U = torch.linalg.cholesky(inverse, upper=True)
    left = W_OI.double()[:, order]
    scale = scale_OG.double()[:, order // (W_OI.shape[1] // scale_OG.shape[1])]
    found = torch.empty_like(left)
    for start in range(0, len(order), COLUMNS):
        stop = min(start + COLUMNS, len(order))
        errors = torch.empty_like(left[:, start:stop])
        for i in range(start, stop):
            found[:, i] = _integers(left[:, i], scale[:, i], bits)
            error = (left[:, i] - scale[:, i] * found[:, i]) / U[i, i]
            left[:, i + 1 : stop] -= torch.outer(error, U[i, i + 1 : stop])
            errors[:, i - start] = error
        left[:, stop:] -= errors @ U[start:stop, stop:]
    return found[:, order.argsort()].to(torch.int8)


def _integers(weights: Tensor, scale: Tensor, bits: int) -> Tensor:
    return (weights / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def output_moment(second_II: Tensor, mean_I: Tensor, W_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """E[y y^T] of y = W x + b, (O, O) float64, from E[x x^T] and E[x]."""
    W = W_OI.double()
    second = W @ second_II.double() @ W.mT
    if bias_O is None:
        return second
    bias = bias_O.double()
    cross = torch.outer(W @ mean_I.double(), bias)
    return second + cross + cross.mT + torch.outer(bias, bias)
