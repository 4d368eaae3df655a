"""Low-rank factorisation of projections: LoRAP's attention stage (arXiv 2404.09695, 3.1)."""

from collections.abc import Callable, Container, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from lorap_exp.calibration.statistics import SecondMoment, SquaredNorm
from lorap_exp.calibration.walk import Statistic, Statistics
from lorap_exp.models.families import Block
from lorap_exp.models.modeling_compressed import LowRankLinear, reshape_linear
from lorap_exp.ops.low_rank import project_outputs
from lorap_exp.planning.plan import BlockPlan, BlockShape, Price, Rule
from lorap_exp.planning.rules import PublishedRanks, UniformRanks

MatrixName = Literal["q", "k", "v", "o", "gate", "up", "down"]
ZERO_NORM = 1e-4


@dataclass(frozen=True, config={"extra": "forbid"})
class LowRank:
    """W ~ L R for each target, optimal under `metric`.

    Attributes:
        targets: matrices to factorise.
        metric: svd (plain), awsvd (input norms), afm (centred output covariance), activation
            (full second moment of the input).
        exponent: awsvd weights columns by d^exponent; the published code has 1.
        allocation: published or uniform ranks.
        value_output_share: (v + o) : (q + k) parameters of the published allocation.
    """

    targets: tuple[MatrixName, ...]
    metric: Literal["svd", "awsvd", "afm", "activation"]
    exponent: Annotated[float, Field(ge=0)]
    allocation: Literal["published", "uniform"]
    value_output_share: Annotated[float, Field(gt=0)]

    @property
    def rule(self) -> Rule:
        if self.allocation == "uniform":
            return UniformRanks()
        return PublishedRanks(self.value_output_share)

    def prices(self, shape: BlockShape) -> list[Price]:
        found = []
        for matrix in (shape.matrices[name] for name in self._present(shape.matrices)):
            outs, ins = matrix.out_features, matrix.in_features
            found.append(
                Price(shape.index, matrix.name, "rank", outs * ins, outs + ins, min(outs, ins))
            )
        return found

    def statistics(self) -> Mapping[str, Mapping[str, Callable[[], Statistic]]]:
        if self.metric == "svd":
            return {}
        if self.metric == "awsvd":
            return {name: {"squared_norm": SquaredNorm} for name in self.targets}
        return {name: {"second_moment": SecondMoment} for name in self.targets}

    def compress(self, block: Block, plan: BlockPlan, statistics: Statistics) -> None:
        for name in self._present(block.family.matrices):
            if name in plan.ranks:
                metric = self._metric(name, statistics)
                block.replace(name, factorise(block.linear(name), metric, plan.ranks[name]))

    def _present(self, matrices: Container[str]) -> list[str]:
        """Targets that the family has: a two-matrix MLP has no gate."""
        return [name for name in self.targets if name in matrices]

    def _metric(self, name: str, statistics: Statistics) -> Tensor | None:
        if self.metric == "svd":
            return None
        if self.metric == "awsvd":
            norms = statistics[name, "squared_norm"].sqrt()
            return norms.where(norms > 0, ZERO_NORM) ** (2 * self.exponent)
        moments = statistics[name, "second_moment"]
        return moments.covariance if self.metric == "afm" else moments.second


@torch.no_grad()
def factorise(linear: nn.Linear, metric: Tensor | None, rank: int) -> LowRankLinear:
    """A linear layer of the given rank with the bias of the dense one."""
    low_rank = reshape_linear(linear, rank=rank)
    left, right = project_outputs(linear.weight, metric, rank)
    low_rank.left.weight.copy_(left)
    low_rank.right.weight.copy_(right)
    if linear.bias is not None:
        low_rank.left.bias.copy_(linear.bias)
    return low_rank.requires_grad_(False)
