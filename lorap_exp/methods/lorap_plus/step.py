"""LoRAP+: one budget over all layers, spent where the curvature of the loss says that it counts.

Ours; no paper. One forward and one backward pass measure, for every matrix, the second moments of
its inputs and of the gradients at its outputs (K-FAC, arXiv 1503.05671), so that every size of
every part has a predicted damage in nats per token (`curves`). A nested allocation
(`planning.nested`) chooses widths of the MLP and of the value heads and ranks of q, k, v, o, gate
and up in pivoted storage (PIFA, arXiv 2501.19090). In the walk value heads are rotated, units are
removed by structured optimal brain surgeon (SlimGPT, arXiv 2412.18110) under the gradients' metric,
and factors are optimal under both metrics. docs/results.md says what the ingredients bought.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from lorap_exp.calibration.evidence import Evidence, Survey
from lorap_exp.calibration.probes import Asked, Probe
from lorap_exp.calibration.walk import Visit
from lorap_exp.methods.contract import Carry, Part, Step
from lorap_exp.methods.lorap_plus.curves import (
    CHANNEL_STEP,
    FORM,
    RANK_STEP,
    VALUE_WIDTHS,
    DamageCurves,
    modules_of,
    stride,
)
from lorap_exp.methods.lorap_plus.rewriting import Curvature, Rewriting, Strengths
from lorap_exp.methods.lorap_plus.trials import Trials, responses, spend
from lorap_exp.ops.curvature import Metric
from lorap_exp.planning.edits import Edit, Factor, Plan, Resize
from lorap_exp.planning.options import Option, rank_option, width_option
from lorap_exp.planning.rounding import nearest
from lorap_exp.planning.shapes import BlockShape, Shape

OUTPUT, CHANNELS = Probe("o", "target_moment", "both"), Probe("down", "target_moment", "both")
ATTENTION_INPUTS = (Probe("q", "second_moment"), Probe("o", "second_moment"))
GRADIENT_SAMPLES, TRIAL_SAMPLES = 64, 4
MLP_INPUTS = (Probe("up", "second_moment"), Probe("down", "second_moment"))


@dataclass(frozen=True, config={"extra": "forbid"})
class LorapPlus(Step):
    """Compress attention and MLP of all layers under one budget.

    Attributes:
        shrink_inputs: of input moments towards their diagonal, in [0, 1).
        shrink_curves: the same where damage is predicted.
        shrink_gradients: of gradient moments towards their diagonal, in [0, 1).
        gradient_samples: sequences of the calibration on which gradients are measured, null for
            64 or as many as there are; they cost several forward passes.
        trial_samples: sequences on which each block's damage is measured, null for 4 in the same
            way.
        trust: power to which measured damage weights a block: 1 as it is, 0 not at all.
        round_to: ranks and widths are multiples of it; 64 for a model that is kept.
        anchor: null, or o and down are fitted towards the original outputs from what they read now,
            with this pull towards their weights (it overfits 8,192 tokens: docs/results.md).
    """

    shrink_inputs: Annotated[float, Field(ge=0, lt=1)]
    shrink_curves: Annotated[float, Field(ge=0, lt=1)]
    shrink_gradients: Annotated[float, Field(ge=0, lt=1)]
    gradient_samples: Annotated[int, Field(ge=1)] | None
    trial_samples: Annotated[int, Field(ge=1)] | None
    trust: Annotated[float, Field(ge=0, le=4)]
    anchor: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    round_to: Annotated[int, Field(ge=1)]

    def sequences(self) -> dict[str, int]:
        asked = {"gradient_samples": self.gradient_samples, "trial_samples": self.trial_samples}
        return {setting: count for setting, count in asked.items() if count is not None}

    @property
    def sized(self) -> Sequence[str]:
        return ("q", "k", "v", "o", "gate", "up", "down")

    @property
    def curves(self) -> DamageCurves:
        """What is measured before sizes are chosen."""
        return DamageCurves(
            self.shrink_curves, self.shrink_gradients, self.gradient_samples or GRADIENT_SAMPLES
        )

    def survey(self, shape: Shape, edits: Sequence[Edit]) -> Iterable[Asked]:
        return [self.curves, self._trials(shape, edits)] if edits else []

    def _trials(self, shape: Shape, edits: Sequence[Edit]) -> Trials:
        touched = {getattr(edit, "block", None) for edit in edits}  # others are protected
        open_ = Shape(tuple(block for block in shape.blocks if block.index in touched))
        share = Plan(0.0, tuple(edits)).shape(open_).parameters / open_.parameters
        shares = tuple(round(s, 3) for s in ((1 + share) / 2, share, share / 2))
        return Trials(self.curves, self._strengths, shares, self.trial_samples or TRIAL_SAMPLES)

    @property
    def _strengths(self) -> Strengths:
        return Strengths(self.shrink_inputs, self.shrink_gradients, self.anchor)

    def options(self, shape: Shape, seen: Survey | None) -> list[Option]:
        """The units in which sizes are chosen; `plan` chooses widths and ranks together."""
        found = []
        for block in shape.blocks:
            step = stride(RANK_STEP, self.round_to)
            found += [
                replace(rank_option(block.index, block.matrices[name], FORM), step=step)
                for name in ("q", "k")
            ]
            usual = max(1, block.size("values") // VALUE_WIDTHS)
            found.append(width_option(block, "values", stride(usual, self.round_to)))
            found.append(width_option(block, "ffn", stride(CHANNEL_STEP, self.round_to)))
        return found

    def plan(
        self, shape: Shape, ratio: float, seen: Survey | None, alone: bool = True
    ) -> list[Edit]:
        """Sizes of least damage; without evidence the same share of everything, rounded."""
        even = [e for b in shape.blocks for e in _even(b, 1 - ratio, self.round_to)]
        if seen is None:
            return even
        trials, curves = self._trials(shape, even), seen.of(self.curves)
        tried = {b.index: modules_of(b, curves[b.index]) for b in shape.blocks}
        found = responses(seen.of(trials), tried, shape.blocks, trials.shares)
        modules = {b.index: modules_of(b, curves[b.index], self.round_to) for b in shape.blocks}
        exact = [edit for block in shape.blocks for edit in _even(block, 1 - ratio)]
        budget = Plan(ratio, tuple(exact)).shape(shape).parameters
        return spend(modules, budget, found, self.trust)

    def visits(self, present: Sequence[str]) -> list[Visit]:
        mlp = tuple(name for name in ("gate", "up", "down") if name in present)
        fits = self.anchor is not None
        found = [
            Visit(("q", "k", "v"), ATTENTION_INPUTS),
            Visit(("o",), (OUTPUT,) if fits else (), behind=fits),
            Visit(mlp, MLP_INPUTS),
        ]
        return [*found, Visit(("down",), (CHANNELS,), behind=True)] if fits else found

    @torch.no_grad()
    def apply(
        self, part: Part, edits: Sequence[Edit], seen: Evidence, carry: Carry
    ) -> Sequence[Edit]:
        if not edits:
            return ()
        block = part.block
        curvature = Curvature(carry["survey"][block.index], self.shrink_gradients)
        work = Rewriting(self._strengths, block, edits, curvature, carry, {})
        match part.names:
            case ("q", "k", "v"):
                work.inputs_of_attention(*self._metrics(seen, ATTENTION_INPUTS))
                return work.edits_of("q", "k", "v", space="values")
            case ("o",):
                if self.anchor is None:
                    work.output_alone()
                else:
                    work.output_of_attention(seen[OUTPUT])
                return work.edits_of("o")
            case ("down",):
                work.output_of_mlp(seen[CHANNELS])
                return ()
        work.channels(*self._metrics(seen, MLP_INPUTS))
        return work.edits_of("gate", "up", "down", space="ffn")

    def _metrics(self, seen: Evidence, probes: Iterable[Probe]) -> list[Metric]:
        return [Metric(seen[probe].second, self.shrink_inputs) for probe in probes]


def _even(block: BlockShape, share: float, round_to: int = 1) -> list[Edit]:
    """The same share of q, k, the value features and the channels; v and o follow the latter.

    Sizes are the nearest multiples of `round_to`.
    """
    found: list[Edit] = []
    for name in ("q", "k"):
        option = rank_option(block.index, block.matrices[name], FORM)
        rank = nearest(int(option.size_for(share)), option.full, round_to)
        found.append(Factor(block.index, name, rank, FORM))
    for space in ("values", "ffn"):
        size = int(share * block.size(space))
        if size < 1:
            raise ValueError(f"a share of {share:.4g} leaves nothing of {space}")
        found.append(Resize(block.index, space, nearest(size, block.size(space), round_to)))
    return found
