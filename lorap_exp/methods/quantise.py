"""Quantisation as the last stage of a stack: what the stages before left is stored as integers.

Every linear layer that holds a matrix of a block (dense, or the factors of one) is rounded to 8 or
4 bits; `gptq` rounds column by column and lets later columns make up for the error (arXiv
2210.17323), measured behind everything that was rewritten before it. The saved folder holds the
integers (`models.quantised`), and what is scored is the quantised model.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from transformers import PreTrainedConfig

from lorap_exp.calibration.evidence import Evidence
from lorap_exp.calibration.probes import Probe
from lorap_exp.calibration.statistics import Moments
from lorap_exp.calibration.walk import Visit
from lorap_exp.methods.contract import Carry, Part, Step
from lorap_exp.methods.low_rank import naming
from lorap_exp.models.modeling_compressed import Projection
from lorap_exp.models.quantised import BITS, SCALE, check_quantisable
from lorap_exp.ops.gptq import feed_back, group_scales, output_moment, restored
from lorap_exp.planning.edits import Edit, Quantised
from lorap_exp.planning.shapes import Shape


@dataclass(frozen=True, config={"extra": "forbid"})
class Quantise(Step):
    """Store the matrices of all blocks, protected ones too, as integers with shared scales.

    Attributes:
        to: int8 (to nearest, one scale for each row), int4 (to nearest) or gptq (4 bits, the error
            of a column fed into later ones); null leaves the model as it is, for sweeps.
        group_size: inputs of a row that share a scale in 4 bits; it must divide every row.
        ridge: of gptq, added to the second moment of the inputs, relative to its mean diagonal.
    """

    to: Literal["int8", "int4", "gptq"] | None
    group_size: Annotated[int, Field(ge=8, multiple_of=8)]
    ridge: Annotated[float, Field(gt=0, allow_inf_nan=False)]

    final: ClassVar[bool] = True

    @property
    def needs_whole(self) -> str:
        return "" if self.to is None else "stores the weights of the whole model as integers"

    def check(self, config: PreTrainedConfig) -> None:
        if self.to is not None:
            check_quantisable(config, f"a stage that quantises to {self.to}")

    def forms(self, shape: Shape) -> list[Edit]:
        if self.to is None:
            return []
        if self.to != "int8":
            self._check_rows(shape)
        return [Quantised(b.index, self.to, self.group_size) for b in shape.blocks if b.matrices]

    def _check_rows(self, shape: Shape) -> None:
        rows = [
            (length, name, block.index)
            for block in shape.blocks
            for name, matrix in block.matrices.items()
            for length in matrix.row_lengths
        ]
        wrong = [row for row in rows if row[0] % self.group_size]
        if wrong:
            length, name, index = wrong[0]
            raise ValueError(
                f"group_size of a stage that quantises to {self.to} must divide the rows of every "
                f"matrix, got {self.group_size}, and {name} of block {index} has rows of {length} "
                f"({len(wrong)} such in all): round_to={self.group_size} in the stages before, "
                f"or a smaller group_size, avoids it"
            )

    def visits(self, present: Sequence[str]) -> list[Visit]:
        if self.to is None:
            return []
        return [Visit(tuple(present), tuple(self.probes(present)), behind=True)]

    def probes(self, names: Sequence[str]) -> Iterable[Probe]:
        return [Probe(name, "second_moment") for name in names if self.to == "gptq"]

    @torch.no_grad()
    def apply(
        self, part: Part, edits: Sequence[Edit], seen: Evidence, carry: Carry
    ) -> Sequence[Edit]:
        """Round by gptq; what is rounded to nearest is rounded when the model is saved."""
        if self.to == "gptq":
            for name in part.names:
                moments = seen[Probe(name, "second_moment")]
                with naming(name, part.block):
                    for layer, second in layers_of(part.block.linear(name), moments):
                        self._round(layer, second)
        return edits

    def _round(self, layer: nn.Linear, second: Tensor) -> None:
        bits = BITS["gptq"]
        scale = group_scales(layer.weight, bits, self.group_size)
        integers = feed_back(layer.weight, second, scale, bits=bits, ridge=self.ridge)
        layer.weight.copy_(restored(integers, scale))
        layer.register_buffer(SCALE, scale, persistent=False)


def layers_of(
    linear: nn.Linear | Projection, moments: Moments
) -> Iterator[tuple[nn.Linear, Tensor]]:
    """The linear layers of a projection, each with the second moment of its own inputs.

    The inputs of a left factor are what the right one computes when it is its turn: rounded, where
    the caller has rounded it.
    """
    second, mean = moments.second, moments.mean
    if not isinstance(linear, Projection):
        yield linear, second
        return
    read: Any = linear.read
    if read is not None:
        second, mean = second[read][:, read], mean[read]
    first, *left = linear.parts()
    yield first, second
    if left:
        yield left[0], output_moment(second, mean, first.weight, first.bias)
