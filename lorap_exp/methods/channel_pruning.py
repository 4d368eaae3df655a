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
from lorap_exp.ops import channels
from lorap_exp.planning.plan import BlockPlan, BlockShape, Price
from lorap_exp.planning.rounding import Rounding
from lorap_exp.planning.rules import PublishedWidths

ROWS, COLUMNS = ("gate", "up"), ("down",)
ZERO_NORM = 1e-4


@dataclass(frozen=True, config={"extra": "forbid"})
class ChannelPruning:
    """Remove whole intermediate channels of the MLP, without compensation.

    Attributes:
        importance: published (weights times input norms, all matrices), magnitude (weights
            only), wanda_sp and output_energy (down projection and its input), random.
        keep_least: fraction of the least important channels that stay, inside the budget.
        round_to: widths are multiples of it.
        uniform: the same width in every block, else the rounding is carried over blocks.
        seed: of random scores.
    """

    importance: Literal["published", "magnitude", "wanda_sp", "output_energy", "random"]
    keep_least: Annotated[float, Field(ge=0, le=0.1)]
    round_to: Annotated[int, Field(ge=1)]
    uniform: bool
    seed: int

    @property
    def targets(self) -> Sequence[str]:
        return (*ROWS, *COLUMNS)

    @property
    def rule(self) -> PublishedWidths:
        return PublishedWidths(self.keep_least, Rounding(self.round_to, self.uniform))

    def prices(self, shape: BlockShape) -> list[Price]:
        dense = sum(m.parameters for name, m in shape.matrices.items() if name in self.targets)
        width = shape.matrices["down"].in_features
        return [Price(shape.index, "mlp", "width", dense, dense // width, width)]

    def statistics(self) -> Mapping[str, Mapping[str, Callable[[], Statistic]]]:
        return {name: {"squared_norm": SquaredNorm} for name in self.targets}

    def refine(self, block: Block, plan: BlockPlan, statistics: Statistics) -> BlockPlan:
        return plan

    def compress(self, block: Block, plan: BlockPlan, statistics: Statistics) -> None:
        if "mlp" not in plan.widths:
            return
        rows = [name for name in ROWS if name in block.family.matrices]
        scores = self._scores(
            weighted(block, rows, statistics), weighted(block, COLUMNS, statistics), block.index
        )
        least = self.rule.kept_least(scores.numel())
        kept = channels.keep_channels(scores, plan.widths["mlp"], least)
        for name in rows:
            block.replace(name, select(block.linear(name), kept, dim=0))
        for name in COLUMNS:
            block.replace(name, select(block.linear(name), kept, dim=1))

    def _scores(self, rows: channels.Weighted, columns: channels.Weighted, block: int) -> Tensor:
        match self.importance:
            case "published":
                return channels.weighted_channel_norms(rows, columns)
            case "magnitude":
                return channels.channel_norms(rows, columns)
            case "wanda_sp":
                return channels.wanda_sp(columns)
            case "output_energy":
                return channels.output_energy(columns)
            case "random":
                generator = torch.Generator().manual_seed(self.seed * 100_003 + block)
                d = columns[0][1]
                return torch.rand(len(d), generator=generator).to(d.device)


def weighted(block: Block, names: Sequence[str], statistics: Statistics) -> channels.Weighted:
    """(weight, input norms) of each matrix; an exactly zero norm counts as 1e-4 (public code)."""
    pairs = []
    for name in names:
        norms = statistics[name, "squared_norm"].sqrt()
        pairs.append((block.weight(name), norms.where(norms > 0, ZERO_NORM)))
    return pairs


@torch.no_grad()
def select(linear: nn.Linear, kept: Tensor, dim: int) -> nn.Linear:
    """The layer with the kept output features (dim 0) or input features (dim 1)."""
    size = {"out_features" if dim == 0 else "in_features": len(kept)}
    smaller = reshape_linear(linear, **size)
    smaller.weight.copy_(linear.weight.index_select(dim, kept))
    if linear.bias is not None:
        smaller.bias.copy_(linear.bias[kept] if dim == 0 else linear.bias)
    return smaller.requires_grad_(False)
