"""ASVD: SVD of columns scaled by the mean absolute input, ranks by what each matrix's loss says.

Paper: arXiv 2312.05821. Code: hahnyuan/ASVD4LLM. W S = U s V^T with S = diag(mean|x|^.5), cut at a
rank and mapped back. Each matrix alone is cut to a few shares of its parameters and the loss is
measured: its sensitivity. The paper takes shares .1, .2, ..., .9 and 32 x 2048 tokens.
Where ours differs: fewer shares and tokens by default (three `levels`, 4 sequences), rank 1 as the
lowest, and losses between the levels are interpolated; a knapsack makes their sum least under the
budget, where the paper searches one ceiling on the loss of every matrix; each measurement runs the
model from the changed block on.
Published (lowrankarena), LLaMA-7B at 2048 tokens, 0.2 / 0.4: WikiText-2 8.60 / 3840, C4 11.04 /
4269.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from transformers import PreTrainedModel

from lorap_exp.calibration.evidence import Evidence, Survey
from lorap_exp.calibration.probes import Asked, Probe
from lorap_exp.calibration.stream import entered
from lorap_exp.calibration.walk import Visit, Walk, walk
from lorap_exp.methods.contract import Carry, Part, Step
from lorap_exp.methods.low_rank import MatrixName, factorise, metric_of, metric_probes, naming
from lorap_exp.methods.streamline.selection import hidden_states
from lorap_exp.models.families import Block
from lorap_exp.models.source import Source
from lorap_exp.ops.low_rank import principal_outputs
from lorap_exp.planning.edits import Edit, Factor
from lorap_exp.planning.knapsack import Knapsack
from lorap_exp.planning.options import Option, rank_option
from lorap_exp.planning.rounding import Rounding
from lorap_exp.planning.rules import Rule
from lorap_exp.planning.shapes import Shape


@plain_dataclass(frozen=True)
class Sensitivity:
    """The loss of a model in which one matrix alone has a few shares of its parameters.

    A model probe: {"dense": nats, "losses": {block: {matrix: [nats at each level]}}}.
    """

    targets: tuple[str, ...]
    exponent: float
    levels: tuple[float, ...]
    samples: int
    name: ClassVar[str] = "sensitivities"

    def measure(
        self, source: Source, ids: Tensor, batch_size: int, progress: Any
    ) -> dict[str, Any]:
        visit = Visit(self.targets, tuple(metric_probes("absmean", self.targets)))
        how = Walk(batch_size, "original", rewrite=False)
        seen = {block.index: found for block, _, found in walk(source, ids, [visit], how)}
        model, rows = source.model, ids[: self.samples].to(source.device)
        blocks = source.blocks
        batches = [(batch, hidden_states(model, blocks, batch)) for batch in rows.split(batch_size)]
        losses: dict[str, dict[str, list[float]]] = {}
        for position, block in enumerate(progress(blocks)):
            with source.opened(block, rewrite=False, original=True):
                losses[str(block.index)] = {
                    name: [
                        self._loss_from(model, blocks, position, batches)
                        for _ in self._cut(block, name, seen[block.index])
                    ]
                    for name in self.targets
                    if name in block.family.matrices
                }
        return {"dense": self._loss_from(model, blocks, 0, batches), "losses": losses}

    def _cut(self, block: Block, name: str, seen: Evidence) -> Iterator[int]:
        """The block with a matrix at each level; the matrix itself comes back at the end."""
        linear, option = block.linear(name), rank_option(block.index, block.shape().matrices[name])
        with naming(name, block):
            metric = metric_of("absmean", name, seen, self.exponent)
            basis, _ = principal_outputs(linear.weight, metric)
        try:
            for rank in self.ranks(option):
                block.replace(name, factorise(linear, basis, rank))
                yield rank
        finally:
            block.replace(name, linear)

    def ranks(self, option: Option) -> list[int]:
        """The rank of each level, at least 1."""
        return [max(1, int(option.size_for(level))) for level in self.levels]

    @staticmethod
    def _loss_from(
        model: PreTrainedModel,
        blocks: Sequence[Block],
        position: int,
        batches: Sequence[tuple[Tensor, list[Tensor]]],
    ) -> float:
        """Mean nats per token; the original inputs of a block stand for all blocks before it."""
        total = 0.0
        for ids, states in batches:
            with entered(blocks[:position], states[position]):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                total += float(loss) * len(ids)
        return total / sum(len(ids) for ids, _ in batches)


@dataclass(frozen=True, config={"extra": "forbid"})
class Asvd(Step):
    """W ~ L R under diag(mean|x|^exponent), ranks by measured sensitivity.

    Attributes:
        targets: matrices to factorise.
        exponent: of the mean absolute inputs.
        levels: shares of a matrix's parameters at which the loss is measured; 0 stands for rank 1.
        samples: calibration sequences on which it is measured.
        round_to: ranks are multiples of it.
    """

    targets: Annotated[tuple[MatrixName, ...], Field(min_length=1)]
    exponent: Annotated[float, Field(ge=0, le=8)]
    levels: Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], Field(min_length=1)]
    samples: Annotated[int, Field(ge=1)]
    round_to: Annotated[int, Field(ge=1)]

    original_inputs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if sorted(set(self.levels)) != [*self.levels] or self.levels[0] != 0:
            raise ValueError(f"levels must ascend from 0, got {self.levels}")

    def sequences(self) -> dict[str, int]:
        return {"samples": self.samples}

    @property
    def sized(self) -> Sequence[str]:
        return self.targets

    @property
    def rule(self) -> Rule:
        return Knapsack(Rounding(self.round_to, uniform=False))

    @property
    def sensitivity(self) -> Sensitivity:
        """What is measured."""
        return Sensitivity(self.targets, self.exponent, self.levels, self.samples)

    def survey(self, shape: Shape, edits: Sequence[Edit]) -> Iterable[Asked]:
        return [self.sensitivity]

    def options(self, shape: Shape, seen: Survey | None) -> list[Option]:
        options = [
            rank_option(block.index, block.matrices[name])
            for block in shape.blocks
            for name in self.targets
            if name in block.matrices
        ]
        if seen is None:
            return options
        found = seen.of(self.sensitivity)
        return [
            replace(
                o, damage=self._damage(o, found["losses"][str(o.block)][o.name], found["dense"])
            )
            for o in options
        ]

    def _damage(self, option: Option, losses: Sequence[float], dense: float) -> tuple[float, ...]:
        """Loss over the dense one at every rank, never rising with it; none from break-even on."""
        ranks = [*self.sensitivity.ranks(option), int(option.break_even)]
        extra = [*(max(0.0, loss - dense) for loss in losses), 0.0]
        between = np.interp(np.arange(option.full + 1), ranks, extra)
        return tuple(np.maximum.accumulate(between[::-1])[::-1].tolist())

    def probes(self, names: Sequence[str]) -> Iterable[Probe]:
        return metric_probes("absmean", names)

    def apply(
        self, part: Part, edits: Sequence[Edit], seen: Evidence, carry: Carry
    ) -> Sequence[Edit]:
        for edit in edits:
            assert isinstance(edit, Factor) and edit.rank is not None
            linear, name = part.block.linear(edit.matrix), edit.matrix
            metric = metric_of("absmean", name, seen, self.exponent)
            with naming(name, part.block):
                basis, _ = principal_outputs(linear.weight, metric)
            part.block.replace(name, factorise(linear, basis, edit.rank))
        return edits
