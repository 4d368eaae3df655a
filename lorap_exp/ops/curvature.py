"""Compression under the curvature of the loss: what a change of a weight costs, in nats per token.

With S = E[x x^T] of a matrix's inputs and G = E[g g^T] of the gradients at its outputs, a change dW
costs tr(G dW S dW^T) / 2 to second order (K-FAC, arXiv 1503.05671). Damages here are without the
half, so that they compare with one another.

Shapes: O outputs, I inputs, R rank, U units of F features each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lorap_exp.ops.modules import shrunk


def root_factor(S_II: Tensor, share: float = 0.0) -> tuple[Tensor, Tensor]:
    """L with L L^T = S shrunk towards its diagonal, and its inverse, float64.

    Features are scaled to unit variance first, so that their extremes do not hide one another.
    """
    S = shrunk(S_II, share)
    diagonal = S.diagonal()
    scale = diagonal.clamp_min(float(diagonal.mean()) * 1e-8 + 1e-30).sqrt()
    correlation = S / scale[:, None] / scale
    correlation = correlation + 1e-6 * torch.eye(len(S), dtype=S.dtype, device=S.device)
    factor = torch.linalg.cholesky(correlation)
    identity = torch.eye(len(S), dtype=S.dtype, device=S.device)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    return scale[:, None] * factor, inverse / scale


class Metric:
    """A second moment shrunk towards its diagonal; what is computed of it is computed once.

    Args:
        moment: (F, F), or its diagonal (F,), which is left as it is.
        share: of the shrinkage, in [0, 1).
    """

    def __init__(self, moment: Tensor, share: float) -> None:
        self._moment, self._share = moment, share

    def __len__(self) -> int:
        return len(self._moment)

    @cached_property
    def shrunk(self) -> Tensor:
        """(F, F) or (F,), float64."""
        moment = self._moment
        return moment.double() if moment.ndim == 1 else shrunk(moment, self._share)

    @cached_property
    def roots(self) -> tuple[Tensor, Tensor]:
        """L with L L^T the metric, and its inverse, (F, F) float64."""
        if self._moment.ndim == 2:
            return root_factor(self._moment, self._share)
        scale = self.shrunk.sqrt()
        scale = scale.clamp_min(float(scale.mean()) * 1e-8 + 1e-30)
        return torch.diag(scale), torch.diag(1 / scale)

    def times(self, X_FK: Tensor) -> Tensor:
        """The metric times a matrix."""
        return self.shrunk[:, None] * X_FK if self.shrunk.ndim == 1 else self.shrunk @ X_FK

    def turned(self, turn_FK: Tensor) -> "Metric":
        """In another basis, whose features are the columns of `turn_FK`."""
        return Metric(turn_FK.mT @ self._moment @ turn_FK, self._share)

    def of(self, kept: Tensor) -> "Metric":
        """Of some features alone."""
        moment = self._moment[kept]
        return Metric(moment if moment.ndim == 1 else moment[:, kept], self._share)


@dataclass(frozen=True)
class TwoSided:
    """The low-rank approximations of one matrix under both metrics, for every rank.

    Attributes:
        energies: squared singular values, descending: their tail sum from r is the damage of rank
            r.
        vectors: of the eigenproblem on the smaller side, in its columns.
    """

    energies: Tensor
    vectors: Tensor
    weight: Tensor
    outputs: Metric
    inputs: Metric

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """L (O, R) and R (R, I), float64."""
        few = self.vectors[:, :rank]
        if on_inputs(self.weight):
            root, inverse = self.inputs.roots
            return self.weight @ (root @ few), few.mT @ inverse
        root, inverse = self.outputs.roots
        return inverse.mT @ few, (root @ few).mT @ self.weight

    @property
    def tails(self) -> Tensor:
        """Damage of rank 0, 1, ..., K, float64."""
        return tail_sums(self.energies)


def on_inputs(W_OI: Tensor) -> bool:
    """Whether the inputs are the smaller side."""
    return W_OI.shape[1] <= W_OI.shape[0]


def two_sided(W_OI: Tensor, outputs: Metric, inputs: Metric) -> TwoSided:
    """Best approximations under tr(G dW S dW^T), for every rank at once.

    One eigenproblem on the smaller side of the matrix, float64.

    Args:
        W_OI: weight.
        outputs: G.
        inputs: S.
    """
    W = W_OI.double()
    values, vectors = torch.linalg.eigh(_whitened(W, outputs, inputs))
    return TwoSided(values.flip(0).clamp_min(0), vectors.flip(-1), W, outputs, inputs)


def tails(W_OI: Tensor, outputs: Metric, inputs: Metric) -> Tensor:
    """`two_sided(...).tails` without the factors, several times faster."""
    whitened = _whitened(W_OI.double(), outputs, inputs)
    return tail_sums(torch.linalg.eigvalsh(whitened).flip(0).clamp_min(0))


def tail_sums(energies_K: Tensor) -> Tensor:
    """The sum of what lies beyond rank 0, 1, ..., K."""
    total = energies_K.flip(0).cumsum(0).flip(0)
    return torch.cat([total, total.new_zeros(1)])


def _whitened(W: Tensor, outputs: Metric, inputs: Metric) -> Tensor:
    """The matrix of the eigenproblem on the smaller side."""
    if on_inputs(W):
        root = inputs.roots[0]
        return root.mT @ (W.mT @ outputs.times(W)) @ root
    root = outputs.roots[0]
    return root.mT @ (W @ inputs.times(W.mT)) @ root


@dataclass(frozen=True)
class Elimination:
    """Units kept at each size, the damage that far, at the sizes asked for.

    `order` holds all units, the first to go first; of those that all sizes keep the order is not
    defined.
    """

    kept: list[Tensor]
    damages: list[float]
    order: Tensor


def eliminate(
    W_OI: Tensor, S_II: Tensor, G_OO: Tensor, sizes: Sequence[int], units_UF: Tensor | None = None
) -> Elimination:
    """Structured optimal brain surgeon under a metric on the outputs, some units in each round.

    A unit's score is the damage of removing it while the others make up for it; the lowest go, the
    rest are corrected, and the inverse is downdated.

    Args:
        W_OI: the matrix that reads the units.
        S_II: second moment of its inputs, shrunk by the caller.
        G_OO: metric of its outputs.
        sizes: units left after each round, not ascending.
        units_UF: columns of each unit; None for single columns.
    """
    diagonal = S_II.diagonal().clamp_min(1e-20)
    scale = diagonal.sqrt()
    correlation = S_II / scale[:, None] / scale
    correlation = correlation + 1e-4 * torch.eye(len(scale), dtype=S_II.dtype, device=S_II.device)
    W, G = (W_OI.to(S_II.dtype) * scale).mT, G_OO.to(S_II.dtype)
    units = torch.arange(len(W), device=W.device)[:, None] if units_UF is None else units_UF
    features = units.shape[1]
    order = units.flatten()
    W, inverse = W[order], _inverse(correlation)[order][:, order]
    alive, damage = torch.arange(len(units), device=W.device), 0.0
    kept, damages, order_of = [], [], []
    for size in sizes:
        if len(alive) > size:
            ranked = _scores(W, inverse, G, features).argsort(stable=True)
            gone, stay = ranked[: len(alive) - size], ranked[len(alive) - size :].sort().values
            out, keep = _columns(gone, features), _columns(stay, features)
            between = inverse[:, out]
            solved = torch.linalg.solve(between[out], torch.cat([between.mT, W[out]], 1))
            moved, change = solved[:, : len(inverse)], solved[:, len(inverse) :]
            damage += float(((W[out] @ G) * change).sum())
            W = W[keep] - between[keep] @ change
            inverse = inverse[keep][:, keep] - between[keep] @ moved[:, keep]
            order_of.append(alive[gone])
            alive = alive[stay]
        kept.append(alive)
        damages.append(damage)
    return Elimination(kept, damages, torch.cat([*order_of, alive]))


def _inverse(S: Tensor) -> Tensor:
    """Of a positive definite matrix."""
    return torch.cholesky_inverse(torch.linalg.cholesky(S))


def _columns(units: Tensor, features: int) -> Tensor:
    return (units[:, None] * features + torch.arange(features, device=units.device)).flatten()


def _scores(W: Tensor, inverse: Tensor, G: Tensor, features: int) -> Tensor:
    if features == 1:
        return ((W @ G) * W).sum(1) / inverse.diagonal()
    count = len(W) // features
    at = torch.arange(count, device=W.device)
    blocks = inverse.view(count, features, count, features)[at, :, at]
    own = W.view(count, features, -1)
    inner = (own @ G) @ own.mT
    return torch.einsum("ugh,uhg->u", torch.linalg.inv(blocks), inner)


def balanced(outputs_GOF: Tensor, moments_GFF: Tensor, metric_OO: Tensor) -> tuple[Tensor, Tensor]:
    """A basis of one value head in which its features are independent and sorted by what they do.

    T A T^T = 1 for the summed second moment A of the head's features in all query heads, and the
    output metric is diagonal, largest first.

    Args:
        outputs_GOF: columns of the output projection of each query head that reads it.
        moments_GFF: second moments of the features as each of them reads it.
        metric_OO: G.

    Returns:
        T and its inverse, (F, F) float64.
    """
    A = moments_GFF.double().sum(0)
    outputs = outputs_GOF.double()
    M = (outputs.mT @ (metric_OO.double() @ outputs)).sum(0)
    identity = torch.eye(len(A), dtype=A.dtype, device=A.device)
    A = A + 1e-4 * A.diagonal().mean() * identity
    M = M + 1e-6 * M.diagonal().mean() * identity
    factor = torch.linalg.cholesky(A)
    _, vectors = torch.linalg.eigh(factor.mT @ M @ factor)
    vectors = vectors.flip(-1)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    return vectors.mT @ inverse, factor @ vectors
