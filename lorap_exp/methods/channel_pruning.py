"""Gradient-free channel pruning of the MLP: LoRAP's second half (arXiv 2404.09695, section 3.3)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from lorap_exp.calibration.statistics import SquaredNorm
from lorap_exp.calibration.walk import Statistic, Statistics
from lorap_exp.models.families import Block
from lorap_exp.models.modeling_compressed import reshape_linear
from lorap_exp.ops.channels import keep_channels, weighted_channel_norms
from lorap_exp.planning.plan import BlockPlan, BlockShape, Price
from lorap_exp.planning.rules import Widths

ROWS, COLUMNS = ("gate", "up"), ("down",)


@dataclass(frozen=True, config={"extra": "forbid"})
class ChannelPruning:
    """Remove whole intermediate channels of the MLP, without compensation.

    Attributes:
        importance: published (weights times input norms, all three matrices).
        keep_least: fraction of the least important channels that stay, inside the budget.
    """

    importance: Literal["published"]
    keep_least: Annotated[float, Field(ge=0, le=0.1)]

    @property
    def targets(self) -> Sequence[str]:
        return (*ROWS, *COLUMNS)

    @property
    def rule(self) -> Widths:
        return Widths(self.keep_least)

    def prices(self, shape: BlockShape) -> list[Price]:
        dense = sum(m.parameters for name, m in shape.matrices.items() if name in self.targets)
        channels = shape.matrices["down"].in_features
        return [Price(shape.index, "mlp", "width", dense, dense // channels, channels)]

    def statistics(self) -> Mapping[str, Mapping[str, Callable[[], Statistic]]]:
        return {name: {"squared_norm": SquaredNorm} for name in self.targets}

    def compress(self, block: Block, plan: BlockPlan, statistics: Statistics) -> None:
        if plan.width is None:
            return

        rows = [name for name in ROWS if name in block.family.matrices]

        def weighted(name: str) -> tuple[Tensor, Tensor]:
            norms = statistics[name, "squared_norm"].sqrt()
            return block.weight(name), norms.where(norms > 0, 1e-4)

        scores = weighted_channel_norms(
            [weighted(name) for name in rows], [weighted(name) for name in COLUMNS]
        )
        kept = keep_channels(scores, plan.width, self.rule.kept_least(scores.numel()))
        for name in rows:
            block.replace(name, select(block.linear(name), kept, dim=0))
        for name in COLUMNS:
            block.replace(name, select(block.linear(name), kept, dim=1))


@torch.no_grad()
def select(linear: nn.Linear, kept: Tensor, dim: int) -> nn.Linear:
    """The layer with the kept output features (dim 0) or input features (dim 1)."""
    size = {"out_features" if dim == 0 else "in_features": len(kept)}
    smaller = reshape_linear(linear, **size)
    smaller.weight.copy_(linear.weight.index_select(dim, kept))
    if linear.bias is not None:
        smaller.bias.copy_(linear.bias[kept] if dim == 0 else linear.bias)
    return smaller.requires_grad_(False)
