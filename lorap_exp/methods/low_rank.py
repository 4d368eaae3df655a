"""Low-rank factorisation of projections: LoRAP's attention step (arXiv 2404.09695, 3.1)."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from lorap_exp.calibration.evidence import Evidence, Survey
from lorap_exp.calibration.probes import Probe
from lorap_exp.calibration.walk import Visit
from lorap_exp.errors import LorapError
from lorap_exp.methods.contract import Carry, Part, Step
from lorap_exp.models.families import Block
from lorap_exp.models.rewriting import factored
from lorap_exp.ops.low_rank import principal_outputs, split
from lorap_exp.planning.edits import Edit, Factor
from lorap_exp.planning.knapsack import Knapsack
from lorap_exp.planning.options import Option, edits_of, rank_option, rank_options
from lorap_exp.planning.rounding import Rounding
from lorap_exp.planning.rules import PublishedRanks, Rule, Uniform
from lorap_exp.planning.shapes import Shape

MatrixName = Literal["q", "k", "v", "o", "gate", "up", "down"]
Metric = Literal["svd", "awsvd", "absmean", "afm", "activation"]
GROUPS = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))
"""Matrices that read the same activations."""
ZERO_NORM = 1e-4


@dataclass(frozen=True, config={"extra": "forbid"})
class LowRank(Step):
    """W ~ L R for each target, optimal under `metric`.

    Attributes:
        targets: matrices to factorise.
        metric: svd (plain), awsvd (input norms), absmean (mean absolute inputs, ASVD), afm (centred
            output covariance), activation (full second moment of the input).
        exponent: awsvd and absmean weight columns by d^exponent; the published codes have 1 and .5.
        allocation: published or uniform ranks, or spectrum (by marginal loss in each block).
        value_output_share: (v + o) : (q + k) parameters of the published allocation.
        form: how factors are stored: pair, or pivoted (PIFA: more rank for the same parameters).
        round_to: ranks are multiples of it.
        uniform: the same rank in every block, else the rounding is carried over blocks.
    """

    targets: tuple[MatrixName, ...]
    metric: Metric
    exponent: Annotated[float, Field(ge=0, le=8)]
    allocation: Literal["published", "uniform", "spectrum"]
    value_output_share: Annotated[float, Field(gt=0)]
    round_to: Annotated[int, Field(ge=1)]
    uniform: bool
    form: Literal["pair", "pivoted"]

    @property
    def sized(self) -> Sequence[str]:
        return self.targets

    @property
    def rule(self) -> Rule:
        rounding = Rounding(self.round_to, self.uniform)
        if self.allocation == "published":
            return PublishedRanks(self.value_output_share, rounding)
        return Uniform(rounding)

    def options(self, shape: Shape, seen: Survey | None) -> list[Option]:
        return rank_options(shape, self.targets, self.form)

    def visits(self, present: Sequence[str]) -> list[Visit]:
        groups = [tuple(n for n in self.targets if n in g and n in present) for g in GROUPS]
        groups = [group for group in groups if group]
        if self.allocation == "spectrum":  # the ranks of a block are chosen together
            groups = [tuple(name for group in groups for name in group)]
        return [Visit(names, tuple(self.probes(names))) for names in groups]

    def probes(self, names: Sequence[str]) -> Iterable[Probe]:
        return metric_probes(self.metric, names)

    def apply(
        self, part: Part, edits: Sequence[Edit], seen: Evidence, carry: Carry
    ) -> Sequence[Edit]:
        ranks = {e.matrix: e for e in edits if isinstance(e, Factor) and e.matrix in part.names}
        if self.allocation == "spectrum" and ranks:
            ranks = self._respend(part, ranks, seen)
        for name, edit in ranks.items():
            assert edit.rank is not None
            basis = self._principal(part.block, name, seen)["basis"]
            part.block.replace(
                name, factorise(part.block.linear(name), basis, edit.rank, self.form)
            )
        return list(ranks.values())

    def _respend(self, part: Part, ranks: dict[str, Factor], seen: Evidence) -> dict[str, Factor]:
        """The block's parameters where they save most energy, each matrix's counted as one."""
        options = []
        for name in part.names:
            energies = self._principal(part.block, name, seen)["energies"]
            lost = 1 - energies.cumsum(0) / energies.sum().clamp_min(1e-300)
            damage = (1.0, *lost.clamp_min(0).tolist())
            option = rank_option(part.block.index, part.shape.matrices[name], self.form)
            options.append(replace(option, damage=damage[: option.full + 1]))
        budget = sum(
            option.cost(ranks[option.name].rank if option.name in ranks else None)
            for option in options
        )
        sizes = Knapsack(Rounding(self.round_to, self.uniform)).spend(options, budget)
        return {e.matrix: e for e in edits_of(options, sizes) if isinstance(e, Factor)}

    def _principal(self, block: Block, name: str, seen: Evidence) -> dict[str, Tensor]:
        """Basis and energies of a matrix, for every rank: computed once, shared where they can be.

        Raises:
            LorapError: the matrix or its inputs are not finite.
        """

        def compute() -> dict[str, Tensor]:
            metric = metric_of(self.metric, name, seen, self.exponent)
            with naming(name, block):
                basis, energies = principal_outputs(block.weight(name), metric)
            return {"basis": basis, "energies": energies}

        label = f"{name} {self.metric} {self.exponent}"
        return seen.derive(label, compute, inputs=self.metric != "svd")


@contextmanager
def naming(name: str, block: Block) -> Iterator[None]:
    """Say which matrix could not be factorised."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise LorapError(f"compress: {name} in block {block.index}: {error}") from error


def metric_probes(metric: Metric, names: Sequence[str]) -> list[Probe]:
    """What a metric must know of the inputs of these matrices."""
    if metric == "svd":
        return []
    what = {"awsvd": "squared_norm", "absmean": "mean_absolute"}.get(metric, "second_moment")
    return [Probe(name, what) for name in names]


def metric_of(metric: Metric, name: str, seen: Evidence, exponent: float = 1.0) -> Tensor | None:
    """M of `ops.low_rank` for one matrix; an exactly zero norm counts as 1e-4 (public code)."""
    if metric == "svd":
        return None
    if metric in ("awsvd", "absmean"):
        (probe,) = metric_probes(metric, [name])
        sizes = seen[probe].sqrt() if metric == "awsvd" else seen[probe]
        weights: Tensor = sizes.where(sizes > 0, ZERO_NORM) ** (2 * exponent)
        return weights
    moments = seen[Probe(name, "second_moment")]
    found: Tensor = moments.covariance if metric == "afm" else moments.second
    return found


def factorise(linear: nn.Linear, basis_OK: Tensor, rank: int, form: str = "pair") -> Any:
    """A linear layer of the given rank with the bias of the dense one."""
    left, right = split(linear.weight, basis_OK.to(linear.weight.device), rank)
    return factored(linear, left, right, form)
