"""The damage of each block alone at the asked size, and how it corrects what the curves predict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lorap_exp.calibration.evidence import Evidence
from lorap_exp.calibration.probes import Probe
from lorap_exp.methods.lorap_plus.curves import FORM, DamageCurves, modules_of
from lorap_exp.methods.lorap_plus.rewriting import Rewriting, Strengths
from lorap_exp.models.families import Block
from lorap_exp.planning.edits import Edit
from lorap_exp.planning.nested import Module, allocate
from lorap_exp.planning.shapes import BlockShape

NEGLIGIBLE = 1e-4
"""A block's damage beside the largest of all blocks that is too small to be told from rounding."""


@dataclass(frozen=True)
class Trials:
    """What the model loses when each block alone keeps `share` of its parameters."""

    curves: DamageCurves
    strengths: Strengths
    share: float
    sequences: int
    name: ClassVar[str] = "trials"

    def after(self) -> DamageCurves:
        return self.curves

    @torch.no_grad()
    def rewrite(self, block: Block, seen: Evidence, derived: Mapping[str, Tensor]) -> None:
        """Attention and MLP, by the moments that the curves are of."""
        shape = block.shape()
        edits = block_plan(modules_of(shape, derived), shape, self.share)
        orders = {space: derived[f"{space}.order"] for space in ("values", "ffn")}
        work = Rewriting(self.strengths, block, edits, seen, {}, orders)
        moments = {name: seen[Probe(name, "weighted_moment")] for name in ("q", "o", "down")}
        work.inputs_of_attention(moments["q"], moments["o"])
        work.output_alone(moments["o"])
        work.channels(seen[Probe("up", "second_moment")].second, moments["down"])


def trusted(
    measured: Mapping[int, float], predicted: Mapping[int, float], trust: float
) -> dict[int, float]:
    """(measured / predicted damage)^trust of each block; what is nearly nothing counts as that."""

    def floored(damages: Mapping[int, float], index: int) -> float:
        least = NEGLIGIBLE * max(*damages.values(), NEGLIGIBLE)
        return max(damages[index], least)

    return {i: (floored(measured, i) / floored(predicted, i)) ** trust for i in predicted}


def block_plan(modules: Sequence[Module], shape: BlockShape, share: float) -> list[Edit]:
    """The sizes of least predicted damage of one block that keeps a share of its parameters."""
    return allocate(modules, int(share * shape.parameters), {shape.index: 1.0}, FORM)
