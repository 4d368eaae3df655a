"""Low-rank factorisation of projections: LoRAP's attention stage (arXiv 2404.09695, 3.1)."""

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from lorap_exp.calibration.statistics import SecondMoment, SquaredNorm
from lorap_exp.calibration.walk import Statistic, Statistics
from lorap_exp.errors import LorapError
from lorap_exp.models.families import Block
from lorap_exp.models.modeling_compressed import LowRankLinear, reshape_linear
from lorap_exp.ops.low_rank import principal_outputs, split
from lorap_exp.planning.plan import BlockPlan, BlockShape, Price
from lorap_exp.planning.rounding import Rounding
from lorap_exp.planning.rules import PublishedRanks, Rule, SpectrumRanks, UniformRanks

MatrixName = Literal["q", "k", "v", "o", "gate", "up", "down"]
Metric = Literal["svd", "awsvd", "afm", "activation"]
ZERO_NORM = 1e-4


@dataclass(frozen=True, config={"extra": "forbid"})
class LowRank:
    """W ~ L R for each target, optimal under `metric`.

    Attributes:
        targets: matrices to factorise.
        metric: svd (plain), awsvd (input norms), afm (centred output covariance), activation
            (full second moment of the input).
        exponent: awsvd weights columns by d^exponent; the published code has 1.
        allocation: published or uniform ranks, or spectrum (by marginal loss in each block).
        value_output_share: (v + o) : (q + k) parameters of the published allocation.
        round_to: ranks are multiples of it.
        uniform: the same rank in every block, else the rounding is carried over blocks.
    """

    targets: tuple[MatrixName, ...]
    metric: Metric
    exponent: Annotated[float, Field(ge=0)]
    allocation: Literal["published", "uniform", "spectrum"]
    value_output_share: Annotated[float, Field(gt=0)]
    round_to: Annotated[int, Field(ge=1)]
    uniform: bool

    @property
    def rule(self) -> Rule:
        rounding = Rounding(self.round_to, self.uniform)
        if self.allocation == "uniform":
            return UniformRanks(rounding)
        if self.allocation == "spectrum":
            return SpectrumRanks(rounding)
        return PublishedRanks(self.value_output_share, rounding)

    def prices(self, shape: BlockShape) -> list[Price]:
        found = []
        for matrix in (shape.matrices[name] for name in self._present(shape.matrices)):
            outs, ins = matrix.out_features, matrix.in_features
            sizes = (outs * ins, outs + ins, min(outs, ins))
            found.append(Price(shape.index, matrix.name, "rank", *sizes))
        return found

    def statistics(self) -> Mapping[str, Mapping[str, Callable[[], Statistic]]]:
        return {name: dict(metric_statistics(self.metric)) for name in self.targets}

    def refine(self, block: Block, plan: BlockPlan, statistics: Statistics) -> BlockPlan:
        rule = self.rule
        if not isinstance(rule, SpectrumRanks):
            return plan
        names = self._present(block.family.matrices)
        shape, prices = block.shape(), self.prices(block.shape())
        budget = sum(plan.shapes(shape)[name].parameters for name in names)
        if budget == sum(price.dense for price in prices):
            return plan
        spectra = []
        for name in names:
            spectra.append(self._principal(block, name, statistics)["energies"].tolist())
        sizes = dict(zip(names, rule.refine(prices, spectra, budget), strict=True))
        ranks = {name: rank for name, rank in plan.ranks.items() if name not in names}
        return replace(plan, ranks=ranks | {n: r for n, r in sizes.items() if r is not None})

    def compress(self, block: Block, plan: BlockPlan, statistics: Statistics) -> None:
        for name in self._present(block.family.matrices):
            if name in plan.ranks:
                basis = self._principal(block, name, statistics)["basis"]
                block.replace(name, factorise(block.linear(name), basis, plan.ranks[name]))

    def _present(self, matrices: Container[str]) -> list[str]:
        """Targets that the family has: a two-matrix MLP has no gate."""
        return [name for name in self.targets if name in matrices]

    def _principal(self, block: Block, name: str, statistics: Statistics) -> dict[str, Tensor]:
        """Basis and energies of a matrix, for every rank: computed once, shared where they can be.

        Raises:
            LorapError: the matrix or its inputs are not finite.
        """

        def compute() -> dict[str, Tensor]:
            metric = metric_of(self.metric, name, statistics, self.exponent)
            with naming(name, block):
                basis, energies = principal_outputs(block.weight(name), metric)
            return {"basis": basis, "energies": energies}

        label = f"{name} {self.metric} {self.exponent}"
        return statistics.derive(label, compute, inputs=self.metric != "svd")


@contextmanager
def naming(name: str, block: Block) -> Iterator[None]:
    """Say which matrix could not be factorised."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise LorapError(f"compress: {name} in block {block.index}: {error}") from error


def metric_statistics(metric: Metric) -> Mapping[str, Callable[[], Statistic]]:
    """What a metric must know of the input of a matrix."""
    if metric == "svd":
        return {}
    if metric == "awsvd":
        return {"squared_norm": SquaredNorm}
    return {"second_moment": SecondMoment}


def metric_of(
    metric: Metric, name: str, statistics: Statistics, exponent: float = 1.0
) -> Tensor | None:
    """M of `ops.low_rank` for one matrix; an exactly zero norm counts as 1e-4 (public code)."""
    if metric == "svd":
        return None
    if metric == "awsvd":
        norms = statistics[name, "squared_norm"].sqrt()
        return norms.where(norms > 0, ZERO_NORM) ** (2 * exponent)
    moments = statistics[name, "second_moment"]
    return moments.covariance if metric == "afm" else moments.second


@torch.no_grad()
def factorise(linear: nn.Linear, basis_OK: Tensor, rank: int) -> LowRankLinear:
    """A linear layer of the given rank with the bias of the dense one."""
    low_rank = reshape_linear(linear, rank=rank)
    left, right = split(linear.weight, basis_OK.to(linear.weight.device), rank)
    low_rank.left.weight.copy_(left)
    low_rank.right.weight.copy_(right)
    if linear.bias is not None:
        low_rank.left.bias.copy_(linear.bias)
    return low_rank.requires_grad_(False)
