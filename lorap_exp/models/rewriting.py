"""Linear layers in new forms, with their weights: what methods put in the place of a projection.

Every layer keeps the bias, dtype and device of the one it replaces, and is frozen.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lorap_exp.models.modeling_compressed import reshape_linear
from lorap_exp.ops.low_rank import pivot


@torch.no_grad()
def factored(linear: nn.Linear, left_OR: Tensor, right_RI: Tensor, form: str = "pair") -> Any:
    """W ~ L R as two factors, or as `rank` rows of L R and the coefficients of the others."""
    low_rank = reshape_linear(linear, rank=len(right_RI), form=form)
    if form == "pair":
        low_rank.left.weight.copy_(left_OR)
        low_rank.right.weight.copy_(right_RI)
        if linear.bias is not None:
            low_rank.left.bias.copy_(linear.bias)
        return low_rank.requires_grad_(False)
    _fill_pivoted(low_rank, left_OR, right_RI, linear.bias)
    return low_rank.requires_grad_(False)


def complement(kept: Tensor, size: int) -> Tensor:
    """The numbers below `size` that are not kept, ascending."""
    gone = torch.ones(size, dtype=torch.bool, device=kept.device)
    return gone.index_fill(0, kept, False).nonzero().flatten()


@torch.no_grad()
def select(linear: nn.Linear, kept: Tensor, dim: int) -> nn.Linear:
    """The layer with the kept output features (dim 0) or input features (dim 1)."""
    size = {"out_features" if dim == 0 else "in_features": len(kept)}
    smaller = reshape_linear(linear, **size)
    smaller.weight.copy_(linear.weight.index_select(dim, kept))
    if linear.bias is not None:
        smaller.bias.copy_(linear.bias[kept] if dim == 0 else linear.bias)
    return smaller.requires_grad_(False)


@torch.no_grad()
def scattered(linear: nn.Linear, rows: Tensor) -> Any:
    """The layer that computes only some rows of its output; the others are zero."""
    narrow = reshape_linear(linear, scatter=len(rows))
    narrow.kept.copy_(rows)
    narrow.inner.weight.copy_(linear.weight[rows])
    if linear.bias is not None:
        narrow.inner.bias.copy_(linear.bias[rows])
    return narrow.requires_grad_(False)


@torch.no_grad()
def gathered(linear: nn.Linear, columns: Tensor) -> Any:
    """The layer that reads only some features of its input."""
    narrow = reshape_linear(linear, gather=len(columns))
    narrow.read.copy_(columns)
    narrow.inner.weight.copy_(linear.weight[:, columns])
    if linear.bias is not None:
        narrow.inner.bias.copy_(linear.bias)
    return narrow.requires_grad_(False)


@torch.no_grad()
def dense_like(linear: nn.Linear, weight_OI: Tensor, bias_O: Tensor | None = None) -> nn.Linear:
    """A dense layer of any size with these weights; without `bias_O` there is none."""
    outs, ins = weight_OI.shape
    made = reshape_linear(linear, out_features=outs, in_features=ins, bias=bias_O is not None)
    made.weight.copy_(weight_OI)
    if bias_O is not None:
        made.bias.copy_(bias_O)
    return made.requires_grad_(False)


@torch.no_grad()
def rewritten(
    linear: nn.Linear,
    weight_OI: Tensor,
    bias_O: Tensor | None = None,
    *,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    factors: tuple[Tensor, Tensor] | None = None,
) -> Any:
    """A layer of any form: narrow, of low rank in pivoted storage, or both.

    Args:
        linear: the layer whose place it takes.
        weight_OI: of the features that are computed and read.
        bias_O: of the features that are computed.
        rows: where the computed features stand in the output; None where the output is narrower.
        columns: which features of the input are read; None where the input is narrower.
        factors: L (O, R) and R (R, I) in place of the weight.
    """
    outs, ins = weight_OI.shape
    sizes = {"scatter": outs} if rows is not None else {"out_features": outs}
    sizes |= {"gather": ins} if columns is not None else {"in_features": ins}
    biased = bias_O is not None
    if factors is None:
        made = reshape_linear(linear, bias=biased, **sizes)
        inner = made.inner if rows is not None or columns is not None else made
        inner.weight.copy_(weight_OI)
        if bias_O is not None:
            inner.bias.copy_(bias_O)
    else:
        left, right = factors
        made = reshape_linear(linear, rank=len(right), form="pivoted", bias=biased, **sizes)
        _fill_pivoted(made, left, right, bias_O)
    if rows is not None:
        made.kept.copy_(rows)
    if columns is not None:
        made.read.copy_(columns)
    return made.requires_grad_(False)


def _fill_pivoted(made: Any, left: Tensor, right: Tensor, bias: Tensor | None) -> None:
    rows, kept, coefficients = pivot(left, right)
    others = complement(rows, len(left))
    made.order.copy_(torch.cat([rows, others]))
    made.right.weight.copy_(kept)
    made.left.weight.copy_(coefficients)
    if bias is not None:  # that of the other rows comes on top of what the kept rows make
        whole = bias.double()
        made.right.bias.copy_(whole[rows])
        made.left.bias.copy_(whole[others] - coefficients @ whole[rows])
