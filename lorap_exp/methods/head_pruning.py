"""Pruning of whole attention heads: LoRAP's counter-example to factorising attention.

The unit is a key-value head with all query heads that read it, so grouped-query attention stays
consistent and the ratio of query to key-value heads never changes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from pydantic.dataclasses import dataclass

from lorap_exp.calibration.statistics import SquaredNorm
from lorap_exp.calibration.walk import Statistic, Statistics
from lorap_exp.methods.channel_pruning import select, weighted
from lorap_exp.models.families import Block
from lorap_exp.ops.channels import group_norms, keep_channels
from lorap_exp.planning.plan import BlockPlan, BlockShape, Price
from lorap_exp.planning.rounding import Rounding
from lorap_exp.planning.rules import UniformWidths

ROWS, COLUMNS = ("q", "k", "v"), ("o",)


@dataclass(frozen=True, config={"extra": "forbid"})
class HeadPruning:
    """Remove the least important key-value groups of each block.

    The number of groups is small, so the remainder is carried from block to block and the whole
    model meets the ratio.

    Attributes:
        importance: published (weights times input norms of q, k, v, o).
    """

    importance: Literal["published"]

    @property
    def targets(self) -> Sequence[str]:
        return (*ROWS, *COLUMNS)

    @property
    def rule(self) -> UniformWidths:
        return UniformWidths(Rounding(uniform=False))

    def prices(self, shape: BlockShape) -> list[Price]:
        if not shape.groups:
            raise ValueError("the attention of this family has a fixed number of heads")
        dense = sum(shape.matrices[name].parameters for name in self.targets)
        groups = shape.groups
        return [Price(shape.index, "heads", "width", dense, dense // groups, groups)]

    def statistics(self) -> Mapping[str, Mapping[str, Callable[[], Statistic]]]:
        return {name: {"squared_norm": SquaredNorm} for name in self.targets}

    def refine(self, block: Block, plan: BlockPlan, statistics: Statistics) -> BlockPlan:
        return plan

    def compress(self, block: Block, plan: BlockPlan, statistics: Statistics) -> None:
        if "heads" not in plan.widths:
            return
        groups = block.shape().groups
        rows, columns = weighted(block, ROWS, statistics), weighted(block, COLUMNS, statistics)
        kept = keep_channels(group_norms(rows, columns, groups), plan.widths["heads"], 0)
        for name in self.targets:
            dim = 0 if name in ROWS else 1
            linear = block.linear(name)
            features = torch.arange(linear.weight.shape[dim], device=kept.device)
            block.replace(name, select(linear, features.view(groups, -1)[kept].flatten(), dim))
