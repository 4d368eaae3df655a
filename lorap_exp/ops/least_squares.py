"""Closed-form linear maps between activations, from accumulated products.

Shapes: N tokens, I input features, O output features.
"""

import torch
from torch import Tensor


def ridge_solution(XX_II: Tensor, XY_IO: Tensor, ridge: float) -> Tensor:
    """B (I, O) that minimises |X B - Y|^2 + lambda |B|^2.

    Args:
        XX_II: X^T X, symmetric positive semi-definite.
        XY_IO: X^T Y.
        ridge: lambda over the mean of the diagonal of X^T X, at least 0; with 0 the solution of
            least norm.

    Solved in float64.

    Raises:
        ValueError: a negative ridge, or a product that is not finite.
    """
    if ridge < 0:
        raise ValueError(f"ridge must be at least 0, got {ridge}")
    XX, XY = XX_II.double(), XY_IO.double()
    if not (torch.isfinite(XX).all() and torch.isfinite(XY).all()):
        raise ValueError("the activations are not finite")
    strength = ridge * XX.diagonal().mean()
    if strength == 0:
        return torch.linalg.pinv(XX, hermitian=True) @ XY
    damped = XX + strength * torch.eye(len(XX), dtype=XX.dtype, device=XX.device)
    return torch.linalg.solve(damped, XY)
