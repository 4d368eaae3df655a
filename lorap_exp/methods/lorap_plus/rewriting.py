"""The rewriting of one block to the sizes that were chosen for it, visit by visit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorap_exp.calibration.evidence import Evidence
from lorap_exp.calibration.probes import Probe
from lorap_exp.methods.contract import Carry
from lorap_exp.methods.lorap_plus.curves import ValueHeads
from lorap_exp.methods.low_rank import naming
from lorap_exp.methods.pruning import size_of
from lorap_exp.models.families import Block
from lorap_exp.models.rewriting import rewritten
from lorap_exp.ops.anchored import refit
from lorap_exp.ops.curvature import Metric, TwoSided, eliminate, two_sided
from lorap_exp.ops.modules import refit_columns
from lorap_exp.planning.edits import Edit, Factor, Resize

VALUE_ROUNDS, CHANNEL_ROUNDS = 8, 16
"""Rounds in which value features and channels are removed."""
SMALL = 1e-4
"""Ridge of the refit on kept units, relative to the mean second moment."""


@dataclass(frozen=True)
class Strengths:
    """How far measured moments are trusted; see `LorapPlus`."""

    shrink_inputs: float
    shrink_gradients: float
    anchor: float | None


class Curvature:
    """Metrics of the outputs of one block's matrices, each computed once for all rewritings of it.

    `whole` holds factorisations of matrices of full size, by name, each of one input metric.
    """

    def __init__(self, seen: Evidence, share: float) -> None:
        self._seen, self._share = seen, share
        self._metrics: dict[str, Metric] = {}
        self.whole: dict[str, TwoSided] = {}

    def of(self, name: str) -> Metric:
        """Of the gradients at the outputs of a matrix."""
        if name not in self._metrics:
            what = "gradient_square" if name in ("gate", "up") else "gradient_moment"
            self._metrics[name] = Metric(self._seen[Probe(name, what)], self._share)
        return self._metrics[name]


class Rewriting:
    """The rewriting of one block, visit by visit."""

    def __init__(
        self,
        strengths: Strengths,
        block: Block,
        edits: Sequence[Edit],
        curvature: Curvature,
        carry: Carry,
        orders: Mapping[str, Tensor],
    ) -> None:
        self._step, self._block, self._edits, self._carry = strengths, block, edits, carry
        self._curvature, self._orders = curvature, orders

    def edits_of(self, *names: str, space: str | None = None) -> list[Edit]:
        """What was planned for some matrices and a space."""
        factors = [e for e in self._edits if isinstance(e, Factor) and e.matrix in names]
        return factors + [e for e in self._edits if isinstance(e, Resize) and e.space == space]

    def _rank(self, name: str) -> int | None:
        ranks = (e.rank for e in self._edits if isinstance(e, Factor) and e.matrix == name)
        return next(ranks, None)

    def _factors(
        self, name: str, weight: Tensor, outputs: Metric, inputs: Metric
    ) -> tuple[Tensor, Tensor] | None:
        if (rank := self._rank(name)) is None:
            return None
        with naming(name, self._block):
            return two_sided(weight, outputs, inputs).factors(rank)

    def _factors_of_whole(self, name: str, inputs: Metric) -> tuple[Tensor, Tensor] | None:
        """Of a matrix as it is."""
        if (rank := self._rank(name)) is None:
            return None
        whole = self._curvature.whole
        with naming(name, self._block):
            if name not in whole:
                weight = self._block.weight(name)
                whole[name] = two_sided(weight, self._curvature.of(name), inputs)
            return whole[name].factors(rank)

    def inputs_of_attention(self, inputs: Metric, mixed: Metric) -> None:
        """Ranks of q and k; value heads rotated, the least features removed, the rank of v.

        `inputs` is the metric of the inputs of q, k and v, `mixed` that of o.
        """
        block = self._block
        for name in ("q", "k"):
            linear = block.linear(name)
            factors = self._factors_of_whole(name, inputs)
            if factors is not None:
                made = rewritten(linear, linear.weight, linear.bias, factors=factors)
                block.replace(name, made)
        size = size_of(self._edits, "values")
        if size is None:
            v = block.linear("v")
            factors = self._factors_of_whole("v", inputs)
            if factors is not None:
                block.replace("v", rewritten(v, v.weight, v.bias, factors=factors))
            self._carry |= {"columns": None, "inputs": mixed}
            return
        self._narrow_values(size, inputs, mixed.shrunk)

    def _narrow_values(self, size: int, inputs_of_v: Metric, mixed: Tensor) -> None:
        block, heads = self._block, ValueHeads(self._block)
        v, o = block.linear("v"), block.linear("o")
        metric = self._curvature.of("o").shrunk
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
        gradients = self._curvature.of("v").turned(back).of(kept)
        factors = self._factors("v", values, gradients, inputs_of_v)
        block.replace("v", rewritten(v, values, bias, rows=kept, factors=factors))
        block.replace("o", rewritten(o, fitted, o.bias, columns=columns))
        again = Metric(inputs[columns][:, columns], self._step.shrink_inputs)
        self._carry |= {"columns": columns, "inputs": again}

    def output_of_attention(self, moments: Any) -> None:
        """o fitted to the original outputs from what it reads now; then its rank."""
        o = self._block.linear("o")
        second, cross = moments.second, _centred(moments, o.bias)
        columns, weight = self._carry["columns"], o.weight.double()
        if columns is not None:
            second, cross = second[columns][:, columns], cross[:, columns]
            weight = weight[:, columns]
        assert self._step.anchor is not None
        inputs = Metric(second, self._step.shrink_inputs)
        self._write_output(refit(second, cross, weight, self._step.anchor), inputs)

    def output_alone(self) -> None:
        """The rank of o, which is left as it is otherwise."""
        columns, weight = self._carry["columns"], self._block.weight("o").double()
        self._write_output(weight if columns is None else weight[:, columns], self._carry["inputs"])

    def _write_output(self, fitted: Tensor, inputs: Metric) -> None:
        block, o, columns = self._block, self._block.linear("o"), self._carry.pop("columns")
        factors = self._factors("o", fitted, self._curvature.of("o"), inputs)
        if columns is None and factors is None:
            o.weight.copy_(fitted)
            return
        made = rewritten(_like(o), fitted, o.bias, columns=columns, factors=factors)
        block.replace("o", made)

    def channels(self, inputs: Metric, inputs_of_down: Metric) -> None:
        """The least channels removed, ranks of gate and up.

        `inputs` is the metric of the inputs of gate and up.
        """
        block, inner = self._block, inputs_of_down.shrunk
        down = block.linear("down")
        size = size_of(self._edits, "ffn")
        kept = torch.arange(down.in_features, device=inner.device)
        if size is not None:
            if "ffn" in self._orders:
                kept = self._orders["ffn"][-size:].sort().values
            else:
                metric = self._curvature.of("down").shrunk
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
            factors = self._factors(name, weight, self._curvature.of(name).of(kept), inputs)
            if size is not None or factors is not None:
                block.replace(name, rewritten(linear, weight, bias, factors=factors))

    def output_of_mlp(self, moments: Any) -> None:
        """down fitted to the original outputs from what it reads now."""
        assert self._step.anchor is not None
        down = self._block.linear("down")
        cross = _centred(moments, down.bias)
        down.weight.copy_(refit(moments.second, cross, down.weight, self._step.anchor))


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
