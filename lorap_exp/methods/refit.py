"""Least squares after a selection: a matrix is fitted to the original model's outputs.

`W' = E[y x^T] (E[x x^T])^-1` with x what the matrix reads in the compressed model and y what it
gave in the original one, pulled towards the present weight by a ridge. It stacks on any step, as it
changes no size (the refit of GRAIL, arXiv 2602.23795, for every matrix).
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from lorap_exp.calibration.evidence import Evidence
from lorap_exp.calibration.probes import Probe
from lorap_exp.calibration.walk import Visit
from lorap_exp.methods.contract import Carry, Part, Step
from lorap_exp.methods.low_rank import MatrixName
from lorap_exp.models.modeling_compressed import LowRankLinear
from lorap_exp.ops.anchored import refit
from lorap_exp.planning.edits import Edit


@dataclass(frozen=True, config={"extra": "forbid"})
class Refit(Step):
    """Fit matrices to their original outputs from their present inputs.

    A factorised matrix keeps its right factor; its left factor is fitted.

    Attributes:
        targets: matrices to fit, each measured behind everything before it.
        ridge: pull towards the present weight, relative to each input feature's second moment.
    """

    targets: tuple[MatrixName, ...]
    ridge: Annotated[float, Field(ge=0, allow_inf_nan=False)]

    def visits(self, present: Sequence[str]) -> list[Visit]:
        names = [name for name in self.targets if name in present]
        return [Visit((name,), tuple(self.probes([name])), behind=True) for name in names]

    def probes(self, names: Sequence[str]) -> Iterable[Probe]:
        return [Probe(name, "target_moment", of="both") for name in names]

    @torch.no_grad()
    def apply(
        self, part: Part, edits: Sequence[Edit], seen: Evidence, carry: Carry
    ) -> Sequence[Edit]:
        (name,) = part.names
        moments = seen[Probe(name, "target_moment", of="both")]
        linear: Any = part.block.linear(name)
        cross, second = moments.cross, moments.second
        if linear.bias is not None:
            cross = cross - torch.outer(linear.bias.double(), moments.mean)
        if isinstance(linear, LowRankLinear):
            right = linear.right.weight.double()
            second, cross = right @ second @ right.mT, cross @ right.mT
            linear = linear.left
        linear.weight.copy_(refit(second, cross, linear.weight, self.ridge))
        return ()
