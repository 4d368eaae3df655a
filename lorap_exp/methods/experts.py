"""Removing whole experts of a mixture, as many in every layer, so its architecture stays stock.

The experts that the router gives least weight go, with their rows of the router; a token that chose
one of them gets the next best. No paper; routing weight is the usual measure of an expert's use.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from transformers import PreTrainedConfig

from lorap_exp.calibration.evidence import Evidence, Survey
from lorap_exp.calibration.probes import Probe
from lorap_exp.calibration.walk import Visit
from lorap_exp.errors import LorapError
from lorap_exp.methods.contract import Carry, Part, Step
from lorap_exp.methods.pruning import size_of
from lorap_exp.models.experts import keep_experts
from lorap_exp.models.families import family_of
from lorap_exp.ops.channels import keep_channels
from lorap_exp.planning.edits import Edit
from lorap_exp.planning.options import Option, width_option
from lorap_exp.planning.rounding import Rounding
from lorap_exp.planning.rules import Uniform
from lorap_exp.planning.shapes import Shape

EXPERTS = "experts"


@dataclass(frozen=True, config={"extra": "forbid"})
class ExpertPruning(Step):
    """Keep the most used experts of every layer.

    Attributes:
        importance: routed (mean weight that the router gives an expert) or random.
        seed: of random scores.
    """

    importance: Literal["routed", "random"]
    seed: int

    @property
    def sized(self) -> Sequence[str]:
        return (EXPERTS,)

    @property
    def rule(self) -> Uniform:
        return Uniform(Rounding(uniform=True))

    def check(self, config: PreTrainedConfig) -> None:
        if family_of(config).experts is None:
            raise LorapError(
                f"a stage that removes experts needs a mixture of them, got '{config.model_type}'"
            )

    def options(self, shape: Shape, seen: Survey | None) -> list[Option]:
        return [width_option(block, EXPERTS) for block in shape.blocks]

    def visits(self, present: Sequence[str]) -> list[Visit]:
        return [Visit((EXPERTS,), tuple(self.probes((EXPERTS,))))]

    def probes(self, names: Sequence[str]) -> Iterable[Probe]:
        return [Probe(EXPERTS, "mean_absolute")] if self.importance == "routed" else []

    def apply(
        self, part: Part, edits: Sequence[Edit], seen: Evidence, carry: Carry
    ) -> Sequence[Edit]:
        if (count := size_of(edits, EXPERTS)) is None:
            return ()
        if self.importance == "routed":
            scores = seen[Probe(EXPERTS, "mean_absolute")]
        else:
            generator = torch.Generator().manual_seed(self.seed * 100_003 + part.block.index)
            scores = torch.rand(part.shape.size(EXPERTS), generator=generator)
        keep_experts(part.block, keep_channels(scores, count, 0).tolist())
        return edits
