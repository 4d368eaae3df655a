"""Importance of the intermediate channels of an MLP, and the choice of those that stay.

Shapes: C intermediate channels, H hidden size. Rows of gate and up and columns of down belong to
one channel each. `d` vectors hold the calibration norm of every input feature of a matrix.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Weighted = Sequence[tuple[Tensor, Tensor]]
"""Pairs (weight, d of its input)."""


def weighted_channel_norms(rows: Weighted, columns: Weighted) -> Tensor:
    """LoRAP's gradient-free channel score: sum over matrices of |(|W| * d)[c]|_2.

    Source: arXiv 2404.09695, section 3.3, and its public code.

    Args:
        rows: (W_CH, d_H) of the matrices whose rows are channels (gate, up).
        columns: (W_HC, d_C) of the matrices whose columns are channels (down).

    Returns:
        Scores (C,), float32; larger is more important.
    """
    terms = [(W.float() * d.float()).norm(dim=1) for W, d in rows]
    terms += [(W.float() * d.float()).norm(dim=0) for W, d in columns]
    return torch.stack(terms).sum(0)


def channel_norms(rows: Weighted, columns: Weighted) -> Tensor:
    """Magnitude: the same score without activations, scores (C,)."""
    return weighted_channel_norms(
        [(W, torch.ones_like(d)) for W, d in rows], [(W, torch.ones_like(d)) for W, d in columns]
    )


def wanda_sp(columns: Weighted) -> Tensor:
    """Mean over outputs of |W_HC| d_C: Wanda's metric summed by channel (arXiv 2312.11983)."""
    return torch.stack([(W.float().abs() * d.float()).mean(0) for W, d in columns]).sum(0)


def output_energy(columns: Weighted) -> Tensor:
    """|W[:, c]|_2 d_c: root of the energy that channel c adds to the output, (C,)."""
    return torch.stack([W.float().norm(dim=0) * d.float() for W, d in columns]).sum(0)


def keep_channels(scores: Tensor, width: int, keep_least: int) -> Tensor:
    """Sorted indices of `width` channels: the `keep_least` lowest scores and the best of the rest.

    LoRAP keeps the "least important 1 %" (arXiv 2404.09695, section 3.3) and pays for it inside
    the budget: the channels pruned are those ranked keep_least, keep_least + 1, ... from below.
    """
    channels = scores.numel()
    if not 0 <= keep_least <= width <= channels:
        raise ValueError(
            f"keep_least and width must satisfy 0 <= keep_least <= width <= {channels}, "
            f"got {keep_least} and {width}"
        )
    order = torch.sort(scores, stable=True).indices
    pruned = channels - width
    return torch.cat([order[:keep_least], order[keep_least + pruned :]]).sort().values


def group_norms(rows: Weighted, columns: Weighted, groups: int) -> Tensor:
    """Scores (groups,) of key-value groups: sum over matrices of |(|W| * d) of the group|_F.

    Args:
        rows: (W, d) of q, k, v, whose rows fall into `groups` consecutive equal parts.
        columns: (W, d) of o, whose columns do.
    """
    terms = [(W.float() * d.float()).unflatten(0, (groups, -1)).norm(dim=(1, 2)) for W, d in rows]
    terms += [
        (W.float() * d.float()).mT.unflatten(0, (groups, -1)).norm(dim=(1, 2)) for W, d in columns
    ]
    return torch.stack(terms).sum(0)


def unit_sums(scores_C: Tensor, units: int) -> Tensor:
    """Scores of `units` consecutive equal parts, each the sum of its features', (units,)."""
    return scores_C.unflatten(0, (units, -1)).sum(1)


def taylor(rows: Weighted, columns: Weighted, units: int) -> Tensor:
    """First-order change of the loss when a unit goes, term by term: sum of |w dL/dw|.

    Source: LLM-Pruner (arXiv 2305.11627, section 3.2, its element-wise first-order form).

    Args:
        rows: (W, dL/dW) of the matrices whose rows fall into `units` consecutive equal parts.
        columns: (W, dL/dW) of those whose columns do.
        units: how many there are.

    Returns:
        Scores (units,), float32; larger is more important.
    """
    terms = [(W.float() * G.float()).abs().sum(1) for W, G in rows]
    terms += [(W.float() * G.float()).abs().sum(0) for W, G in columns]
    return torch.stack([unit_sums(term, units) for term in terms]).sum(0)


def column_squares(W_OC: Tensor) -> Tensor:
    """|W[:, c]|^2 of every column, float64, (C,)."""
    return W_OC.double().square().sum(0)


def fluctuation(squares_C: Tensor, variance_C: Tensor) -> Tensor:
    """var_c |W[:, c]|^2: what the output varies by when channel c is frozen at its mean, (C,).

    Source: FLAP (arXiv 2312.11983, section 3.2). float64.

    Args:
        squares_C: |W[:, c]|^2 of the matrix that reads the channels.
        variance_C: of the channels over the calibration tokens.
    """
    return variance_C.double() * squares_C.double()


def standardised(scores_C: Tensor) -> Tensor:
    """Scores with mean 0 and standard deviation 1, comparable between layers; float64, (C,).

    Raises:
        ValueError: all scores are the same.
    """
    scores = scores_C.double()
    spread = scores.std()
    if not spread > 0:
        raise ValueError("scores that are all the same cannot be standardised")
    return (scores - scores.mean()) / spread
