"""The damage of each block alone at several sizes, and how it corrects what the curves predict."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from lorap_exp.calibration.evidence import Evidence
from lorap_exp.calibration.probes import Probe
from lorap_exp.methods.lorap_plus.curves import FORM, DamageCurves, modules_of
from lorap_exp.methods.lorap_plus.rewriting import Curvature, Rewriting, Strengths
from lorap_exp.models.families import Block
from lorap_exp.ops.curvature import Metric
from lorap_exp.planning.edits import Edit
from lorap_exp.planning.nested import Module, allocate, damage_of, least
from lorap_exp.planning.shapes import BlockShape

NEGLIGIBLE = 1e-4
"""A block's damage beside the largest of all blocks that is too small to be told from rounding."""
LEAST_POWER, MOST_POWER = 0.5, 3.0
"""By which a block's measured damage may grow with the predicted one."""
ROUNDS = 12
"""Of weighting blocks by their damage at the sizes that the weights before gave."""


@dataclass(frozen=True)
class Trials:
    """What the model loses when each block alone keeps each of `shares` of its parameters."""

    curves: DamageCurves
    strengths: Strengths
    shares: tuple[float, ...]
    sequences: int
    name: ClassVar[str] = "trials"

    def after(self) -> DamageCurves:
        return self.curves

    def rewritings(
        self, block: Block, seen: Evidence, derived: Mapping[str, Tensor]
    ) -> list[Callable[[Block], None]]:
        """Attention and MLP to each share, by the moments that the curves are of."""
        shape, share = block.shape(), self.strengths.shrink_inputs
        modules = modules_of(shape, derived)
        orders = {space: derived[f"{space}.order"] for space in ("values", "ffn")}
        curvature = Curvature(seen, self.strengths.shrink_gradients)
        inputs = {n: Metric(seen[Probe(n, "weighted_moment")], share) for n in ("q", "o", "down")}
        of_mlp = Metric(seen[Probe("up", "second_moment")].second, share)

        @torch.no_grad()
        def rewrite(kept: float, copy: Block) -> None:
            edits = block_plan(modules, shape, kept)
            work = Rewriting(self.strengths, copy, edits, curvature, {}, orders)
            work.inputs_of_attention(inputs["q"], inputs["o"])
            work.output_alone()
            work.channels(of_mlp, inputs["down"])

        return [partial(rewrite, kept) for kept in self.shares]


@dataclass(frozen=True)
class Response:
    """Measured damage of one block as a function of the predicted one: powers between points.

    Attributes:
        predicted: ascending, two or more.
        measured: of the same sizes.
    """

    predicted: tuple[float, ...]
    measured: tuple[float, ...]

    def slope(self, predicted: float) -> float:
        """The derivative: measured nats for each predicted one."""
        x = math.log(max(predicted, self.predicted[0] * NEGLIGIBLE))
        xs, ys = [math.log(v) for v in self.predicted], [math.log(v) for v in self.measured]
        number = sum(x > known for known in xs[1:-1])
        run = max(xs[number + 1] - xs[number], 1e-9)
        power = (ys[number + 1] - ys[number]) / run
        power = min(max(power, LEAST_POWER), MOST_POWER)
        return power * math.exp(ys[number] + power * (x - xs[number]) - x)


def responses(
    measured: Mapping[int, Sequence[float]],
    modules: Mapping[int, Sequence[Module]],
    shapes: Sequence[BlockShape],
    shares: Sequence[float],
) -> dict[int, Response]:
    """How each block responds; a damage that is nearly nothing counts as that.

    Args:
        measured: damages at `shares`, by block.
        modules: of each block, as the trials chose from them.
        shapes: of the blocks.
        shares: of the parameters, descending.
    """
    predicted = {
        shape.index: [damage_of(own, block_plan(own, shape, share)) for share in shares]
        for shape in shapes
        for own in [modules[shape.index]]
    }
    floors = []
    for values in (predicted, measured):
        largest = [max(own[n] for own in values.values()) for n in range(len(shares))]
        floors.append([NEGLIGIBLE * max(value, NEGLIGIBLE) for value in largest])
    return {
        index: Response(
            _rising([max(v, least) for v, least in zip(own, floors[0], strict=True)]),
            _rising([max(v, least) for v, least in zip(measured[index], floors[1], strict=True)]),
        )
        for index, own in predicted.items()
    }


def _rising(values: Sequence[float]) -> tuple[float, ...]:
    """Each at least the one before it."""
    found: list[float] = []
    for value in values:
        found.append(max(value, found[-1]) if found else value)
    return tuple(found)


def spend(
    modules: Mapping[int, Sequence[Module]],
    budget: int,
    found: Mapping[int, Response],
    trust: float,
) -> list[Edit]:
    """The sizes of least damage as the blocks respond, at most `budget` parameters.

    The weight of a block is the slope of its response at the sizes that the weights before gave,
    to the power `trust`; the middle point of the trials is where it begins.
    """
    flat = [module for own in modules.values() for module in own]
    logs = {
        index: trust * math.log(one.slope(one.predicted[len(one.predicted) // 2]))
        for index, one in found.items()
    }
    for _ in range(ROUNDS):
        edits = allocate(flat, budget, {i: math.exp(value) for i, value in logs.items()}, FORM)
        for index, one in found.items():
            own = [edit for edit in edits if getattr(edit, "block", None) == index]
            slope = one.slope(damage_of(modules[index], own))
            logs[index] = 0.5 * logs[index] + 0.5 * trust * math.log(slope)
    return allocate(flat, budget, {i: math.exp(value) for i, value in logs.items()}, FORM)


def block_plan(modules: Sequence[Module], shape: BlockShape, share: float) -> list[Edit]:
    """The sizes of least predicted damage of one block that keeps a share of its parameters.

    Where no sizes are that small they are the smallest.
    """
    budget = max(int(share * shape.parameters), least(modules))
    return allocate(modules, budget, {shape.index: 1.0}, FORM)
