"""Optimal brain surgeon for columns: which inputs of a matrix can go, what the others must do.

The error of W' against W on inputs x is tr((W' - W) H (W' - W)^T) with H = E[x x^T]. Removing
columns P at least error changes the others by -W_P (H^-1_PP)^-1 H^-1_P: (Hassibi and Stork, 1993).

Shapes: O outputs, I inputs, G units of g = I / G consecutive inputs each, K kept inputs.
"""

import torch
from torch import Tensor


def damped(second_II: Tensor, ridge: float) -> Tensor:
    """H = E[x x^T] + ridge * mean(diagonal) * I, float64.

    Raises:
        ValueError: a moment that is not finite or zero.
    """
    second = second_II.double()
    mean = second.diagonal().mean()
    if not (torch.isfinite(second).all() and mean > 0):
        raise ValueError("the second moment of the inputs is zero or not finite")
    return second + ridge * mean * torch.eye(len(second), dtype=second.dtype, device=second.device)


def removal_errors(W_OI: Tensor, inverse_II: Tensor, width: int) -> Tensor:
    """Least error of removing one unit alone: tr(W_u (H^-1_uu)^-1 W_u^T) of each unit, (G,).

    Args:
        W_OI: weight, float64.
        inverse_II: H^-1, float64.
        width: g, inputs of a unit.
    """
    if width == 1:
        return W_OI.square().sum(0) / inverse_II.diagonal()
    units = W_OI.unflatten(1, (-1, width)).permute(1, 2, 0)
    own = inverse_II.unflatten(0, (-1, width)).unflatten(2, (-1, width))
    own_Ggg = own.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    solved = torch.cholesky_solve(units, torch.linalg.cholesky(own_Ggg))
    return (units * solved).sum((1, 2))


def prune_units(
    W_OI: Tensor, second_II: Tensor, *, keep: int, units: int, rounds: int, ridge: float
) -> tuple[Tensor, Tensor]:
    """Choose the units that stay, and refit their columns to what all of them did.

    Units go in rounds of equal number, the least error first; after each round the remaining
    columns are corrected and H^-1 is brought down to them. At the end the kept columns are computed
    anew, W_K = (W H)_:K H_KK^-1, so that no rounding of the rounds is left.

    Source: SlimGPT (arXiv 2412.18110, section 3) and the local pruner of Tyr (2503.09657).

    Args:
        W_OI: weight, any floating dtype.
        second_II: E[x x^T] of its input.
        keep: units that stay, at least 1.
        units: G; their inputs are consecutive and of equal number.
        rounds: at most one unit less than all go in each.
        ridge: of H, relative to its mean diagonal.

    Returns:
        The sorted numbers of the kept units (keep,), and their columns (O, K), float64.

    Raises:
        ValueError: keep out of range, or a moment that is zero or not finite.
    """
    if not 1 <= keep <= units:
        raise ValueError(f"keep must lie in [1, {units}], got {keep}")
    H, W = damped(second_II, ridge), W_OI.double()
    width = W.shape[1] // units
    inverse, left = torch.cholesky_inverse(torch.linalg.cholesky(H)), W
    alive = torch.arange(units, device=W.device)
    for number in range(rounds):
        goal = units - (units - keep) * (number + 1) // rounds
        if goal == len(alive):
            continue
        order = removal_errors(left, inverse, width).argsort(stable=True)
        gone = columns_of(order[: len(alive) - goal].sort().values, width)
        stay = order[len(alive) - goal :].sort().values
        alive, kept = alive[stay], columns_of(stay, width)
        solved = torch.cholesky_solve(
            inverse[gone], torch.linalg.cholesky(inverse[gone][:, gone])
        )  # (H^-1_PP)^-1 H^-1_P:
        left = (left - left[:, gone] @ solved)[:, kept]
        inverse = (inverse - inverse[:, gone] @ solved)[kept][:, kept]
    kept = columns_of(alive, width)
    refit = torch.cholesky_solve((H[kept] @ W.mT), torch.linalg.cholesky(H[kept][:, kept])).mT
    return alive, refit


def columns_of(units: Tensor, width: int) -> Tensor:
    """Numbers of the inputs of some units."""
    return (units[:, None] * width + torch.arange(width, device=units.device)).flatten()
