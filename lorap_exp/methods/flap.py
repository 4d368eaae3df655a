"""FLAP: channels and heads that hardly fluctuate go, and a bias keeps their mean.

Paper: Fluctuation-based Adaptive Structured Pruning, arXiv 2312.11983. Code: CASIA-IVA-Lab/FLAP.
Score of an input channel of o or down: var_c |W[:, c]|^2, standardised inside its layer, a head by
the mean over its channels; one global threshold over all layers, heads weighted by their
parameters; the output's bias takes up W[:, gone] E[x_gone].
Where ours differs: key-value heads go whole, so a group of query heads has one score; a head costs
what it costs in this model (the code has 512 / 3 channels); one unit of each space always stays.
Published, LLaMA-7B at 0.2 / 0.3 / 0.5, calibrated on WikiText-2 (1024 x 128): WikiText-2 at 128
tokens 14.62 / 17.62 / 31.80; mean of seven tasks 62.08 / - / 50.37.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from lorap_exp.calibration.evidence import Evidence, Survey
from lorap_exp.calibration.probes import Asked, Probe
from lorap_exp.methods.contract import Carry, Part
from lorap_exp.methods.pruning import StructuredPruning, keep_units, size_of
from lorap_exp.models.families import Block
from lorap_exp.models.rewriting import dense_like
from lorap_exp.models.source import Source
from lorap_exp.ops import channels
from lorap_exp.planning.edits import Edit
from lorap_exp.planning.options import Option
from lorap_exp.planning.rounding import Rounding
from lorap_exp.planning.rules import Threshold
from lorap_exp.planning.shapes import BlockShape, Shape

READERS = {"heads": "o", "ffn": "down"}
"""The matrix whose columns are the units of a space."""


@plain_dataclass(frozen=True)
class ColumnSquares:
    """|W[:, c]|^2 of the readers of every block: a model probe, since options see no weight."""

    name: ClassVar[str] = "column_squares"

    def measure(
        self, source: Source, ids: Tensor, batch_size: int, progress: Any
    ) -> dict[str, Any]:
        found = {}
        for block in progress(source.blocks):
            with source.opened(block, rewrite=False, original=True):
                found[str(block.index)] = {
                    reader: channels.column_squares(block.weight(reader)).tolist()
                    for reader in READERS.values()
                }
        return found


@dataclass(frozen=True, config={"extra": "forbid"})
class Flap(StructuredPruning):
    """Prune heads and channels under one global threshold, and compensate by biases."""

    original_inputs: ClassVar[bool] = True

    @property
    def rule(self) -> Threshold:
        return Threshold(Rounding(uniform=False))

    def survey(self, shape: Shape, edits: Sequence[Edit]) -> Iterable[Asked]:
        return [ColumnSquares(), *self.probes(self.sized)]

    def probes(self, names: Sequence[str]) -> Iterable[Probe]:
        return [Probe(reader, "variance") for reader in READERS.values()]

    def options(self, shape: Shape, seen: Survey | None) -> list[Option]:
        options = self.units(shape, biased=True)
        if seen is None:
            return options
        blocks = shape.by_index
        return [replace(o, damage=self._damage(blocks[o.block], o, seen)) for o in options]

    def _damage(self, block: BlockShape, option: Option, seen: Survey) -> tuple[float, ...]:
        """The scores of all units that a size leaves out, summed."""
        reader = READERS[option.name]
        squares = torch.tensor(
            seen.of(ColumnSquares())[str(block.index)][reader], dtype=torch.float64
        )
        scores = unit_scores(squares, seen[block.index][Probe(reader, "variance")], option.full)
        lost = torch.cat([scores.new_zeros(1), scores.sort().values.cumsum(0)])
        return tuple(lost.flip(0).tolist())

    def apply(
        self, part: Part, edits: Sequence[Edit], seen: Evidence, carry: Carry
    ) -> Sequence[Edit]:
        for space, reader in READERS.items():
            if (size := size_of(edits, space)) is None:
                continue
            units, weight = part.shape.size(space), part.block.weight(reader)
            moments = seen[Probe(reader, "variance")]
            scores = unit_scores(channels.column_squares(weight), moments, units)
            kept = channels.keep_channels(scores, size, 0)
            gone = torch.ones(units, dtype=torch.bool, device=weight.device)
            gone[kept] = False
            gone = gone.repeat_interleave(weight.shape[1] // units)
            lost = weight[:, gone].double() @ moments.mean[gone]
            keep_units(part.block, space, kept, units)
            add_bias(part.block, reader, lost)
        return edits


def unit_scores(squares_C: Tensor, moments: Any, units: int) -> Tensor:
    """Standardised fluctuation of every unit, the mean over its channels; (units,), float64."""
    fluctuation = channels.fluctuation(squares_C.to(moments.variance.device), moments.variance)
    scores = channels.standardised(fluctuation)
    return channels.unit_sums(scores, units) * units / len(scores)


def add_bias(block: Block, name: str, bias_O: Tensor) -> None:
    """Add to the bias of a matrix, which may not have one."""
    linear = block.linear(name)
    bias = bias_O if linear.bias is None else linear.bias.double() + bias_O
    block.replace(name, dense_like(linear, linear.weight, bias))
