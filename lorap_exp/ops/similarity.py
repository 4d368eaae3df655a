"""How alike are hidden states? Cosine similarity and angular distance, token by token.

Shapes: N tokens, H hidden size.
"""

import math

import torch
from torch import Tensor


def unit_rows(x_NH: Tensor) -> Tensor:
    """Rows of length one, float32; a zero row stays zero."""
    x = x_NH.float()
    return x / x.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def cosines(x_NH: Tensor, y_NH: Tensor) -> Tensor:
    """Cosine of each token of x with the same token of y, both with unit rows; (N,)."""
    return (x_NH * y_NH).sum(-1)


def angular_distance(cosine: Tensor) -> Tensor:
    """arccos(c) / pi, in [0, 1] (UIDL, arXiv 2403.17887, section 3.2)."""
    return cosine.clamp(-1, 1).arccos() / math.pi
