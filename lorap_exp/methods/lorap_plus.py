"""LoRAP+: one budget over all layers, spent where the curvature of the loss says that it counts.

Ours; no paper. One forward and one backward pass measure, for every matrix, the second moments of
its inputs and of the gradients at its outputs (K-FAC, arXiv 1503.05671), so that every size of
every part has a predicted damage in nats per token (`curves`). A nested allocation
(`planning.nested`) chooses widths of the MLP and of the value heads and ranks of q, k, v, o, gate
and up in pivoted storage (PIFA, arXiv 2501.19090). In the walk value heads are rotated, units are
removed by structured optimal brain surgeon (SlimGPT, arXiv 2412.18110) under the gradients' metric,
factors are optimal under both metrics, and o and down are fitted towards the original model's
outputs. docs/methods.md says what each ingredient bought.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from lorap_exp.calibration.evidence import Evidence, Survey
from lorap_exp.calibration.probes import Asked, Probe
from lorap_exp.calibration.walk import Visit
from lorap_exp.methods.contract import Carry, Part, Step
from lorap_exp.methods.curves import (
    CHANNEL_STEP,
    RANK_STEP,
    DamageCurves,
    ValueHeads,
    modules_of,
)
from lorap_exp.methods.low_rank import naming
from lorap_exp.methods.pruning import size_of
from lorap_exp.models.families import Block
from lorap_exp.models.rewriting import rewritten
from lorap_exp.ops.anchored import refit
from lorap_exp.ops.curvature import eliminate, two_sided
from lorap_exp.ops.modules import refit_columns, shrunk
from lorap_exp.planning.edits import Edit, Factor, Plan, Resize
from lorap_exp.planning.nested import Module, allocate, damage_of
from lorap_exp.planning.options import Option, rank_option, width_option
from lorap_exp.planning.shapes import BlockShape, Shape

FORM = "pivoted"
OUTPUT, CHANNELS = Probe("o", "target_moment", "both"), Probe("down", "target_moment", "both")
ATTENTION_INPUTS = (Probe("q", "second_moment"), Probe("o", "second_moment"))
MLP_INPUTS = (Probe("up", "second_moment"), Probe("down", "second_moment"))
VALUE_ROUNDS, CHANNEL_ROUNDS = 8, 16
"""Rounds in which value features and channels are removed."""
NEGLIGIBLE = 1e-4
"""A block's damage beside the largest of all blocks that is too small to be told from rounding."""
SMALL = 1e-4
"""Ridge of the refit on kept units, relative to the mean second moment."""


@dataclass(frozen=True, config={"extra": "forbid"})
class LorapPlus(Step):
    """Compress attention and MLP of all layers under one budget.

    Attributes:
        shrink_inputs: of input moments towards their diagonal, in [0, 1).
        shrink_curves: the same where damage is predicted.
        shrink_gradients: of gradient moments towards their diagonal, in [0, 1).
        gradient_samples: sequences of the calibration on which gradients are measured, null for
            all; they cost several forward passes.
        trial_samples: sequences on which each block's damage is measured.
        trust: power of measured over predicted damage that weights a block's curves.
        anchor: pull of the fit of o and down towards their weights, 0 fits original outputs alone.
    """

    shrink_inputs: Annotated[float, Field(ge=0, lt=1)]
    shrink_curves: Annotated[float, Field(ge=0, lt=1)]
    shrink_gradients: Annotated[float, Field(ge=0, lt=1)]
    gradient_samples: Annotated[int, Field(ge=1)] | None
    trial_samples: Annotated[int, Field(ge=1)]
    trust: Annotated[float, Field(ge=0, le=4)]
    anchor: Annotated[float, Field(ge=0, allow_inf_nan=False)]

    @property
    def sized(self) -> Sequence[str]:
        return ("q", "k", "v", "o", "gate", "up", "down")

    @property
    def curves(self) -> DamageCurves:
        """What is measured before sizes are chosen."""
        return DamageCurves(self.shrink_curves, self.shrink_gradients, self.gradient_samples)

    def survey(self, shape: Shape, edits: Sequence[Edit]) -> Iterable[Asked]:
        return [self.curves, self._trials(shape, edits)] if edits else []

    def _trials(self, shape: Shape, edits: Sequence[Edit]) -> "Trials":
        share = Plan(0.0, tuple(edits)).shape(shape).parameters / shape.parameters
        return Trials(self, round(share, 3), self.trial_samples)

    def options(self, shape: Shape, seen: Survey | None) -> list[Option]:
        """The units in which sizes are chosen; `plan` chooses widths and ranks together."""
        found = []
        for block in shape.blocks:
            found += [
                replace(rank_option(block.index, block.matrices[name], FORM), step=RANK_STEP)
                for name in ("q", "k")
            ]
            found.append(width_option(block, "values", max(1, block.size("values") // 48)))
            found.append(width_option(block, "ffn", CHANNEL_STEP))
        return found

    def plan(
        self, shape: Shape, ratio: float, seen: Survey | None, alone: bool = True
    ) -> list[Edit]:
        """Sizes of least damage; without evidence the same share of everything."""
        even = [edit for block in shape.blocks for edit in _even(block, 1 - ratio)]
        if seen is None:
            return even
        found, measured = seen.of(self.curves), seen.of(self._trials(shape, even))
        parts = {b.index: modules_of(b, found[b.index], FORM) for b in shape.blocks}
        budget = Plan(ratio, tuple(even)).shape(shape).parameters
        share = self._trials(shape, even).share
        predicted = {
            block.index: damage_of(own := parts[block.index], block_plan(own, block, share))
            for block in shape.blocks
        }
        weights = trusted(measured, predicted, self.trust)
        modules = [module for own in parts.values() for module in own]
        return allocate(modules, budget, weights, FORM)

    def visits(self, present: Sequence[str]) -> list[Visit]:
        mlp = tuple(name for name in ("gate", "up", "down") if name in present)
        return [
            Visit(("q", "k", "v"), ATTENTION_INPUTS),
            Visit(("o",), (OUTPUT,), behind=True),
            Visit(mlp, MLP_INPUTS),
            Visit(("down",), (CHANNELS,), behind=True),
        ]

    @torch.no_grad()
    def apply(
        self, part: Part, edits: Sequence[Edit], seen: Evidence, carry: Carry
    ) -> Sequence[Edit]:
        if not edits:
            return ()
        block = part.block
        work = Rewriting(self, block, edits, carry["survey"][block.index], carry, {})
        match part.names:
            case ("q", "k", "v"):
                moments = (seen[probe].second for probe in ATTENTION_INPUTS)
                work.inputs_of_attention(*moments)
                return work.edits_of("q", "k", "v", space="values")
            case ("o",):
                work.output_of_attention(seen[OUTPUT])
                return work.edits_of("o")
            case ("down",):
                work.output_of_mlp(seen[CHANNELS])
                return ()
        work.channels(*(seen[probe].second for probe in MLP_INPUTS))
        return work.edits_of("gate", "up", "down", space="ffn")


def _even(block: BlockShape, share: float) -> list[Edit]:
    """The same share of q, k, the value features and the channels; v and o follow the latter."""
    found: list[Edit] = []
    for name in ("q", "k"):
        rank = int(rank_option(block.index, block.matrices[name], FORM).size_for(share))
        found.append(Factor(block.index, name, max(rank, 1), FORM))
    for space in ("values", "ffn"):
        size = int(share * block.size(space))
        if size < 1:
            raise ValueError(f"a share of {share:.4g} leaves nothing of {space}")
        found.append(Resize(block.index, space, size))
    return found


class Rewriting:
    """The rewriting of one block, visit by visit."""

    def __init__(
        self,
        step: LorapPlus,
        block: Block,
        edits: Sequence[Edit],
        curvature: Evidence,
        carry: Carry,
        orders: Mapping[str, Tensor],
    ) -> None:
        self._step, self._block, self._edits, self._carry = step, block, edits, carry
        self._curvature, self._orders = curvature, orders

    def edits_of(self, *names: str, space: str | None = None) -> list[Edit]:
        """What was planned for some matrices and a space."""
        factors = [e for e in self._edits if isinstance(e, Factor) and e.matrix in names]
        return factors + [e for e in self._edits if isinstance(e, Resize) and e.space == space]

    def _rank(self, name: str) -> int | None:
        ranks = (e.rank for e in self._edits if isinstance(e, Factor) and e.matrix == name)
        return next(ranks, None)

    def _metric(self, name: str) -> Tensor:
        what = "gradient_square" if name in ("gate", "up") else "gradient_moment"
        found: Tensor = self._curvature[Probe(name, what)]
        return found

    def _factors(
        self, name: str, weight: Tensor, metric: Tensor, moment: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        if (rank := self._rank(name)) is None:
            return None
        step = self._step
        with naming(name, self._block):
            found = two_sided(weight, metric, moment, step.shrink_gradients, step.shrink_inputs)
        return found.factors(rank)

    def inputs_of_attention(self, moment: Tensor, mixed: Tensor) -> None:
        """Ranks of q and k; value heads rotated, the least features removed, the rank of v.

        `moment` is that of the inputs of q, k and v, `mixed` that of o.
        """
        block = self._block
        for name in ("q", "k"):
            linear = block.linear(name)
            factors = self._factors(name, linear.weight, self._metric(name), moment)
            if factors is not None:
                made = rewritten(linear, linear.weight, linear.bias, factors=factors)
                block.replace(name, made)
        size = size_of(self._edits, "values")
        if size is None:
            v = block.linear("v")
            factors = self._factors("v", v.weight, self._metric("v"), moment)
            if factors is not None:
                block.replace("v", rewritten(v, v.weight, v.bias, factors=factors))
            self._carry["columns"] = None
            return
        self._narrow_values(size, moment, mixed)

    def _narrow_values(self, size: int, moment: Tensor, mixed: Tensor) -> None:
        step, block, heads = self._step, self._block, ValueHeads(self._block)
        v, o = block.linear("v"), block.linear("o")
        metric = shrunk(self._metric("o"), step.shrink_gradients)
        mixed = shrunk(mixed, step.shrink_inputs)
        turns, backs = heads.turns(mixed, metric)
        turn, back = torch.block_diag(*turns), torch.block_diag(*backs)
        whole, whole_back = heads.basis(mixed, metric)
        reader, inputs = o.weight.double() @ whole_back, whole @ mixed @ whole.mT
        units = heads.units()
        if "values" in self._orders:
            kept = self._orders["values"][-size:].sort().values
        else:
            sizes = _rounds(len(units), size, VALUE_ROUNDS)
            kept = eliminate(reader.float(), inputs.float(), metric, sizes, units).kept[-1]
        columns = units[kept].flatten().sort().values
        ridge = SMALL * float(inputs.diagonal().mean())
        fitted = refit_columns(reader, inputs, columns, ridge)
        values = (turn @ v.weight.double())[kept]
        bias = None if v.bias is None else (turn @ v.bias.double())[kept]
        gradients = (back.mT @ self._metric("v") @ back)[kept][:, kept]
        factors = self._factors("v", values, gradients, moment)
        block.replace("v", rewritten(v, values, bias, rows=kept, factors=factors))
        block.replace("o", rewritten(o, fitted, o.bias, columns=columns))
        self._carry["columns"] = columns

    def output_of_attention(self, moments: Any) -> None:
        """o fitted to the original outputs from what it reads now; then its rank."""
        o = self._block.linear("o")
        second, cross = moments.second, _centred(moments, o.bias)
        columns, weight = self._carry["columns"], o.weight.double()
        if columns is not None:
            second, cross = second[columns][:, columns], cross[:, columns]
            weight = weight[:, columns]
        self._write_output(refit(second, cross, weight, self._step.anchor), second)

    def output_alone(self, second: Tensor) -> None:
        """The rank of o, which is left as it is otherwise."""
        columns, weight = self._carry["columns"], self._block.weight("o").double()
        if columns is not None:
            second, weight = second[columns][:, columns], weight[:, columns]
        self._write_output(weight, second)

    def _write_output(self, fitted: Tensor, second: Tensor) -> None:
        block, o, columns = self._block, self._block.linear("o"), self._carry.pop("columns")
        factors = self._factors("o", fitted, self._metric("o"), second)
        if columns is None and factors is None:
            o.weight.copy_(fitted)
            return
        made = rewritten(_like(o), fitted, o.bias, columns=columns, factors=factors)
        block.replace("o", made)

    def channels(self, moment: Tensor, inner: Tensor) -> None:
        """The least channels removed, ranks of gate and up.

        `moment` is that of the inputs of gate and up, `inner` that of down.
        """
        step, block = self._step, self._block
        inner = shrunk(inner, step.shrink_inputs)
        down = block.linear("down")
        size = size_of(self._edits, "ffn")
        kept = torch.arange(down.in_features, device=inner.device)
        if size is not None:
            if "ffn" in self._orders:
                kept = self._orders["ffn"][-size:].sort().values
            else:
                metric = shrunk(self._metric("down"), step.shrink_gradients)
                sizes = _rounds(down.in_features, size, CHANNEL_ROUNDS)
                kept = eliminate(down.weight.float(), inner.float(), metric, sizes).kept[-1]
            ridge = SMALL * float(inner.diagonal().mean())
            fitted = refit_columns(down.weight, inner, kept, ridge)
            block.replace("down", rewritten(down, fitted, down.bias))
        for name in ("gate", "up"):
            if name not in block.family.matrices:
                continue
            linear = block.linear(name)
            weight = linear.weight[kept]
            bias = None if linear.bias is None else linear.bias[kept]
            factors = self._factors(name, weight, self._metric(name)[kept], moment)
            if size is not None or factors is not None:
                block.replace(name, rewritten(linear, weight, bias, factors=factors))

    def output_of_mlp(self, moments: Any) -> None:
        """down fitted to the original outputs from what it reads now."""
        down = self._block.linear("down")
        cross = _centred(moments, down.bias)
        down.weight.copy_(refit(moments.second, cross, down.weight, self._step.anchor))


@dataclass(frozen=True)
class Trials:
    """What the model loses when each block alone keeps `share` of its parameters."""

    step: LorapPlus
    share: float
    sequences: int
    name: ClassVar[str] = "trials"

    def after(self) -> DamageCurves:
        return self.step.curves

    @torch.no_grad()
    def rewrite(self, block: Block, seen: Evidence, derived: Mapping[str, Tensor]) -> None:
        """Attention and MLP, by the moments that the curves are of."""
        shape = block.shape()
        edits = block_plan(modules_of(shape, derived, FORM), shape, self.share)
        orders = {space: derived[f"{space}.order"] for space in ("values", "ffn")}
        work = Rewriting(self.step, block, edits, seen, {}, orders)
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


def _centred(moments: Any, bias: Tensor | None) -> Tensor:
    """E[(y - b) x^T]: what the weight alone is to give."""
    cross: Tensor = moments.cross
    return cross if bias is None else cross - torch.outer(bias.double(), moments.mean)


def _like(o: Any) -> Any:
    """A plain layer of the full size of o, for its dtype and sizes."""
    weight = o.weight
    return torch.nn.Linear(
        o.in_features, o.out_features, bias=o.bias is not None, dtype=weight.dtype, device="meta"
    ).to_empty(device=weight.device)


def _rounds(units: int, size: int, rounds: int) -> list[int]:
    """Units left after each round, the same number removed in each."""
    return [units - round((units - size) * (number + 1) / rounds) for number in range(rounds)]
