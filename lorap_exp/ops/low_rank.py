"""Low-rank approximation of a weight under an activation metric: one kernel, every metric.

All metrics of LoRAP (arXiv 2404.09695, section 3.1) minimise |(W' - W) M^(1/2)|_F over W' of one
rank, and differ in M only: the identity (SVD), the diagonal of squared input norms (AWSVD), the
covariance (AFM) or the second moment E[x x^T] (exact activation reconstruction).

Shapes: O output features, I input features, R rank; W_OI is a weight as `nn.Linear` stores it.
"""

import torch
from torch import Tensor


def project_outputs(W_OI: Tensor, metric: Tensor | None, rank: int) -> tuple[Tensor, Tensor]:
    """Best rank-`rank` factors of W_OI under |(W' - W) M^(1/2)|_F, without inverting anything.

    With P the top eigenvectors of W M W^T the minimiser is W' = P P^T W (Eckart-Young on
    W M^(1/2), whose row space is mapped back by the projection itself). So a singular or zero M
    needs no damping: P is orthonormal whatever M is.

    Args:
        W_OI: weight, any floating dtype.
        metric: M; None is the identity, a vector (I,) a diagonal, a matrix (I, I) positive
            semi-definite up to rounding.
        rank: 1 to min(O, I).

    Returns:
        L_OR with orthonormal columns and R_RI = L^T W, float32, W ~ L R.

    The eigenproblem is solved in float64 by `eigh`, on the smaller side of the weight: several
    times cheaper than an SVD, and exact to float32 for any spectrum that matters.

    Raises:
        ValueError: rank out of range, or a non-finite weight or metric.
    """
    out_features, in_features = W_OI.shape
    if not 1 <= rank <= min(out_features, in_features):
        raise ValueError(
            f"rank must lie in [1, {min(out_features, in_features)}] for a "
            f"{out_features} x {in_features} weight, got {rank}"
        )
    basis_OK, _ = principal_outputs(W_OI, metric)
    return split(W_OI, basis_OK, rank)


def split(W_OI: Tensor, basis_OK: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """L_OR and R_RI = L^T W for the first `rank` columns of a basis, float32."""
    L_OR = basis_OK[:, :rank]
    return L_OR, (L_OR.mT.double() @ W_OI.double()).float()


def principal_outputs(W_OI: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor]:
    """The basis of `project_outputs` for every rank at once, and what each direction is worth.

    Returns:
        Orthonormal columns (O, K), float32, most energetic first, K = min(O, I); and the squared
        singular values of W M^(1/2), descending, float64, (K,): their tail sum from r is the
        squared error of the best rank-r approximation.

    Raises:
        ValueError: a non-finite weight or metric.
    """
    A_OI = apply_root(W_OI, metric)
    if not torch.isfinite(A_OI).all():
        raise ValueError("the weight or its metric is not finite")
    out_features, in_features = A_OI.shape
    if out_features <= in_features:
        values, vectors = torch.linalg.eigh(A_OI @ A_OI.mT)
        basis = vectors.flip(-1)
    else:
        # A V is orthonormalised by QR, not divided by singular values: directions that A
        # annihilates stay harmless, and the first r columns span the leading r directions
        values, vectors = torch.linalg.eigh(A_OI.mT @ A_OI)
        basis = torch.linalg.qr(A_OI @ vectors.flip(-1)).Q
    return basis.float(), values.flip(0).clamp_min(0)


def apply_root(W_OI: Tensor, metric: Tensor | None) -> Tensor:
    """W M^(1/2), float64; negative eigenvalues of M, which are rounding, count as zero."""
    W = W_OI.double()
    if metric is None:
        return W
    if metric.ndim == 1:
        return W * metric.double().clamp_min(0).sqrt()
    values, vectors = torch.linalg.eigh(metric.double())
    return ((W @ vectors) * values.clamp_min(0).sqrt()) @ vectors.mT


def pivot(L_OR: Tensor, R_RI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The product L R as R of its own rows and the coefficients of the others, without loss.

    PIFA (arXiv 2501.19090): R (O + I - R) numbers in place of R (O + I). The rows are chosen by LU
    with partial pivoting of L, so the coefficients are small.

    Returns:
        rows (R,), sorted; B = (L R)[rows] (R, I); C (O - R, R) with (L R)[others] = C B, the
        others in ascending order. Float64.

    Raises:
        ValueError: L has not full column rank.
    """
    L, R = L_OR.double(), R_RI.double()
    permutation, _, upper = torch.linalg.lu(L)
    if not upper.diagonal().abs().min() > 1e-12 * upper.diagonal().abs().max():
        raise ValueError("the factors have a lower rank than they have columns")
    order = permutation.argmax(0)
    rows = order[: L.shape[1]].sort().values
    others = torch.ones(len(L), dtype=torch.bool, device=L.device).index_fill(0, rows, False)
    coefficients = torch.linalg.solve(L[rows].mT, L[others].mT).mT
    return rows, L[rows] @ R, coefficients


def weighted_error(W_OI: Tensor, approximation_OI: Tensor, metric: Tensor | None) -> Tensor:
    """The objective |(W' - W) M^(1/2)|_F as a float64 scalar."""
    return apply_root(approximation_OI.double() - W_OI.double(), metric).norm()


def energies(W_OI: Tensor, metric: Tensor | None) -> Tensor:
    """Squared singular values of W M^(1/2), descending, float64, (min(O, I),).

    Their tail sum from r is the squared error of the best rank-r approximation.
    """
    A_OI = apply_root(W_OI, metric)
    if not torch.isfinite(A_OI).all():
        raise ValueError("the weight or its metric is not finite")
    gram = A_OI @ A_OI.mT if A_OI.shape[0] <= A_OI.shape[1] else A_OI.mT @ A_OI
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0)


def rank_for_energy(energies_R: Tensor, share: float) -> int:
    """The smallest rank that keeps `share` of the energy."""
    kept = energies_R.cumsum(0) / energies_R.sum()
    return int((kept < share).sum().item()) + 1
