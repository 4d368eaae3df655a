"""Joint compression of matrices that meet in one space: channels, rotary pairs, head features.

Nystrom selection of MLP channels, column selection of query-key pairs, and the joint factorisation
of value and output projections (MoDeGPT, arXiv 2408.09632, section 3). Every unit that goes saves
parameters: there is no second factor, so no break-even.

Shapes: C channels, D features of a head, G query heads of a group, O output features.
"""

import torch
from torch import Tensor


def damped(second_II: Tensor, ridge: float) -> Tensor:
    """The second moment with `ridge` times the mean of its diagonal added there, float64."""
    S = second_II.double()
    strength = ridge * S.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    return S + strength * torch.eye(len(S), dtype=S.dtype, device=S.device)


def shrunk(second_II: Tensor, share: float) -> Tensor:
    """The second moment moved by `share` towards its diagonal, float64.

    Directions that few calibration tokens show are trusted less, and features of extreme norm do
    not set the strength for all others, as a ridge relative to the mean does.
    """
    S = second_II.double()
    return (1 - share) * S + share * torch.diag(S.diagonal())


def root_and_inverse(S_II: Tensor) -> tuple[Tensor, Tensor]:
    """S^(1/2) and its pseudo-inverse, float64, of a symmetric positive semi-definite S."""
    values, vectors = torch.linalg.eigh(S_II.double())
    values = values.clamp_min(0)
    usable = values > values[-1].clamp_min(0) * 1e-12
    roots = values.sqrt()
    inverse = torch.where(usable, roots.where(usable, torch.ones_like(roots)).reciprocal(), 0.0)
    return (vectors * roots) @ vectors.mT, (vectors * inverse) @ vectors.mT


def ridge_leverage(second_CC: Tensor, ridge: float) -> Tensor:
    """Ridge leverage scores of channels, diag(S (S + lambda I)^-1), float64, (C,).

    lambda is `ridge`, in units of the second moment; larger scores are harder to predict from the
    other channels. Source: MoDeGPT, algorithm 1.
    """
    S = second_CC.double()
    identity = torch.eye(len(S), dtype=S.dtype, device=S.device)
    return 1 - ridge * torch.linalg.inv(S + ridge * identity).diagonal()


def refit_columns(W_OC: Tensor, second_CC: Tensor, kept: Tensor, ridge: float = 0.0) -> Tensor:
    """W' (O, K) on the kept channels, closest to W x in mean square: W S[:, K] (S[K, K] + rI)^-1.

    The least-squares refit of the matrix that reads pruned channels (Nystrom form of MoDeGPT; the
    last step of SlimGPT and GRAIL). `ridge` is absolute; with 0 the solution of least norm.
    """
    S = second_CC.double()
    S_KK = S[kept][:, kept]
    cross = W_OC.double() @ S[:, kept]
    if ridge:
        S_KK = S_KK + ridge * torch.eye(len(kept), dtype=S.dtype, device=S.device)
        found: Tensor = torch.linalg.solve(S_KK, cross.mT).mT
        return found
    return cross @ torch.linalg.pinv(S_KK, hermitian=True)


def rotary_pair_scores(q_squares_GD: Tensor, k_squares_D: Tensor) -> Tensor:
    """Score of each rotary pair (j, j + D/2) of one key-value head, float64, (D/2,).

    sqrt(sum over the group's query heads and both halves of |Cq^(1/2)[:, j]|^2 |Ck^(1/2)[:, j]|^2);
    a column's squared norm of a root is a diagonal element of the second moment (MoDeGPT, 3.2).

    Args:
        q_squares_GD: E[q_j^2] of every query head of the group.
        k_squares_D: E[k_j^2].
    """
    energies = (q_squares_GD.double() * k_squares_D.double()).sum(0)
    half = len(energies) // 2
    return (energies[:half] + energies[half:]).sqrt()


def value_features(outputs_GOD: Tensor, second_DD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A basis of one value head in which trailing features matter least.

    The output projections O_g of all query heads g that read the head are factorised together under
    the second moment of its features: the best rank-r approximation of the stacked O_g M^(1/2).

    Args:
        outputs_GOD: columns of the output projection of each query head that reads it.
        second_DD: M, of the features of the value head.

    Returns:
        T (D, D), new features = T old features; O' (G, O, D) that reads the new features; the
        first r of them are the best ones for every r. And the squared singular values (D,), whose
        tail sums are the squared errors. Float64.
    """
    stacked = outputs_GOD.double().flatten(0, 1)
    root, inverse = root_and_inverse(second_DD)
    left, energies, right = torch.linalg.svd(stacked @ root, full_matrices=False)
    return right @ inverse, (left * energies).view(outputs_GOD.shape), energies.square()
