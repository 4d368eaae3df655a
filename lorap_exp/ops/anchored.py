"""Low-rank factors towards the original model's outputs from the compressed model's inputs.

One objective covers input-aware, shifted and anchored factorisation (AA-SVD, arXiv 2604.02119;
SVD-LLM, 2403.07378, with b = 0 and the original's inputs):

    min over rank r of E | W' x - W ((1 - b) x + b y) |^2,

x the input that the matrix has now, y the one that it had in the original model.

Shapes: O output features, I input features, R rank.
"""

import torch
from torch import Tensor

from lorap_exp.ops.low_rank import principal_outputs


def anchored_target(W_OI: Tensor, second_II: Tensor, cross_II: Tensor, blend: float) -> Tensor:
    """The unconstrained minimiser W ((1 - b) S + b C) S^-1, float64, S = E[x x^T], C = E[y x^T].

    S is shifted by the smallest multiple of its mean diagonal that makes it invertible.
    """
    S, C, W = second_II.double(), cross_II.double(), W_OI.double()
    if blend == 0:
        return W
    target = W @ ((1 - blend) * S + blend * C)
    factor = positive_cholesky(S)
    found: Tensor = torch.cholesky_solve(target.mT, factor).mT
    return found


def anchored_factors(
    W_OI: Tensor, second_II: Tensor, cross_II: Tensor, blend: float, rank: int
) -> tuple[Tensor, Tensor]:
    """The minimiser of rank `rank` as factors L (O, R) and R (R, I), float32.

    With T the unconstrained minimiser, the best factors are those of T under S (Eckart-Young).
    """
    T = anchored_target(W_OI, second_II, cross_II, blend)
    basis, _ = principal_outputs(T, second_II)
    L = basis[:, :rank]
    return L, (L.mT.double() @ T).float()


def positive_cholesky(S_II: Tensor) -> Tensor:
    """The Cholesky factor of S, with the least shift of its diagonal that allows one, float64.

    Raises:
        ValueError: S is not finite.
    """
    if not torch.isfinite(S_II).all():
        raise ValueError("the activations are not finite")
    S = S_II.double()
    identity = torch.eye(len(S), dtype=S.dtype, device=S.device)
    scale = S.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    shift = 0.0
    while True:
        factor, failed = torch.linalg.cholesky_ex(S + shift * scale * identity)
        if int(failed) == 0:
            return factor
        shift = max(10 * shift, 1e-10)


def refit(second_II: Tensor, cross_OI: Tensor, towards_OI: Tensor, ridge: float) -> Tensor:
    """W' = (E[y x^T] + l W D) (E[x x^T] + l D)^-1, float64: least squares pulled towards W.

    y is the output to be matched, x the present input, D the diagonal of E[x x^T] and l = `ridge`.
    With ridge 0 it is plain least squares; the larger it is, the nearer the solution stays to W.
    """
    S = second_II.double()
    D = S.diagonal().clamp_min(S.diagonal().mean() * 1e-6)
    factor = positive_cholesky(S + ridge * torch.diag(D))
    target = cross_OI.double() + ridge * towards_OI.double() * D
    found: Tensor = torch.cholesky_solve(target.mT, factor).mT
    return found
