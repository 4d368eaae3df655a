"""Removing units of a space with the rows and columns that belong to them.

`ChannelPruning` takes intermediate channels off the MLP without gradients: LoRAP's second half
(arXiv 2404.09695, section 3.3). `HeadPruning` takes whole key-value heads with all query heads that
read them, so grouped-query attention stays consistent.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from lorap_exp.calibration.evidence import Evidence, Survey
from lorap_exp.calibration.probes import Probe
from lorap_exp.methods.contract import Carry, Part, Step
from lorap_exp.models.families import Block
from lorap_exp.models.rewriting import select
from lorap_exp.ops import channels
from lorap_exp.planning.edits import Edit, Resize
from lorap_exp.planning.options import Option, width_option
from lorap_exp.planning.rounding import Rounding
from lorap_exp.planning.rules import PublishedWidths, Uniform
from lorap_exp.planning.shapes import SPACES, BlockShape, Shape

ZERO_NORM = 1e-4


@dataclass(frozen=True, config={"extra": "forbid"})
class ChannelPruning(Step):
    """Remove whole intermediate channels of the MLP, without compensation.

    Attributes:
        importance: published (weights times input norms, all matrices), magnitude (weights
            only), wanda_sp and output_energy (down projection and its input), random.
        keep_least: fraction of the least important channels that stay, inside the budget.
        round_to: widths are multiples of it.
        uniform: the same width in every block, else the rounding is carried over blocks.
        seed: of random scores.
    """

    importance: Literal["published", "magnitude", "wanda_sp", "output_energy", "random"]
    keep_least: Annotated[float, Field(ge=0, le=0.1)]
    round_to: Annotated[int, Field(ge=1)]
    uniform: bool
    seed: int

    @property
    def sized(self) -> Sequence[str]:
        return SPACES["ffn"].matrices

    @property
    def rule(self) -> PublishedWidths:
        return PublishedWidths(self.keep_least, Rounding(self.round_to, self.uniform))

    def options(self, shape: Shape, seen: Survey | None) -> list[Option]:
        return [width_option(block, "ffn") for block in shape.blocks]

    def probes(self, names: Sequence[str]) -> Iterable[Probe]:
        return [Probe(name, "squared_norm") for name in names]

    def apply(
        self, part: Part, edits: Sequence[Edit], seen: Evidence, carry: Carry
    ) -> Sequence[Edit]:
        if (width := size_of(edits, "ffn")) is None:
            return ()
        scores = self._scores(*sides(part.block, "ffn", seen), part.block.index)
        kept = channels.keep_channels(scores, width, self.rule.kept_least(scores.numel()))
        keep_units(part.block, "ffn", kept)
        return edits

    def _scores(self, rows: channels.Weighted, columns: channels.Weighted, block: int) -> Tensor:
        match self.importance:
            case "published":
                return channels.weighted_channel_norms(rows, columns)
            case "magnitude":
                return channels.channel_norms(rows, columns)
            case "wanda_sp":
                return channels.wanda_sp(columns)
            case "output_energy":
                return channels.output_energy(columns)
            case "random":
                generator = torch.Generator().manual_seed(self.seed * 100_003 + block)
                d = columns[0][1]
                return torch.rand(len(d), generator=generator).to(d.device)


@dataclass(frozen=True, config={"extra": "forbid"})
class HeadPruning(Step):
    """Remove the least important key-value groups of each block.

    The number of groups is small, so the remainder is carried from block to block and the whole
    model meets the ratio.

    Attributes:
        importance: published (weights times input norms of q, k, v, o) or wanda_sp (output
            projection and its input).
    """

    importance: Literal["published", "wanda_sp"]

    @property
    def sized(self) -> Sequence[str]:
        return SPACES["heads"].matrices

    @property
    def rule(self) -> Uniform:
        return Uniform(Rounding(uniform=False))

    def options(self, shape: Shape, seen: Survey | None) -> list[Option]:
        return [head_option(block) for block in shape.blocks]

    def probes(self, names: Sequence[str]) -> Iterable[Probe]:
        read = SPACES["heads"].readers if self.importance == "wanda_sp" else names
        return [Probe(name, "squared_norm") for name in read]

    def apply(
        self, part: Part, edits: Sequence[Edit], seen: Evidence, carry: Carry
    ) -> Sequence[Edit]:
        if (size := size_of(edits, "heads")) is None:
            return ()
        groups = part.shape.groups
        if self.importance == "wanda_sp":
            columns = weighted(part.block, SPACES["heads"].readers, seen)
            scores = channels.unit_sums(channels.wanda_sp(columns), groups)
        else:
            scores = channels.group_norms(*sides(part.block, "heads", seen), groups)
        keep_units(part.block, "heads", channels.keep_channels(scores, size, 0), groups)
        return edits


@dataclass(frozen=True, config={"extra": "forbid"})
class StructuredPruning(Step):
    """What methods have in common that prune heads and channels of the original model at once.

    Attributes:
        round_to: widths of the MLP are multiples of it.
    """

    round_to: Annotated[int, Field(ge=1)]

    @property
    def sized(self) -> Sequence[str]:
        return (*SPACES["heads"].matrices, *SPACES["ffn"].matrices)

    def units(self, shape: Shape, biased: bool = False) -> list[Option]:
        """Heads and channels of every block; `biased` ones leave a bias at o and down."""
        o, down = (("o",), ("down",)) if biased else ((), ())
        return [
            option
            for block in shape.blocks
            for option in (head_option(block, o), width_option(block, "ffn", self.round_to, down))
        ]

    def options(self, shape: Shape, seen: Survey | None) -> list[Option]:
        return self.units(shape)


def head_option(block: BlockShape, biases: Sequence[str] = ()) -> Option:
    """The number of key-value heads of a block.

    Raises:
        ValueError: the family has a fixed number of heads.
    """
    if not block.groups:
        raise ValueError("the attention of this family has a fixed number of heads")
    return width_option(block, "heads", biases=biases)


def size_of(edits: Sequence[Edit], space: str) -> int | None:
    """The planned size of a space of a block, None where it stays."""
    return next((e.size for e in edits if isinstance(e, Resize) and e.space == space), None)


def weighted(block: Block, names: Sequence[str], seen: Evidence) -> channels.Weighted:
    """(weight, input norms) of the matrices that the block has of these.

    An exactly zero norm counts as 1e-4 (public code).
    """
    pairs = []
    for name in names:
        if name in block.family.matrices:
            norms = seen[Probe(name, "squared_norm")].sqrt()
            pairs.append((block.weight(name), norms.where(norms > 0, ZERO_NORM)))
    return pairs


def sides(block: Block, space: str, seen: Evidence) -> tuple[channels.Weighted, channels.Weighted]:
    """(weight, input norms) of the matrices that write and of those that read a space."""
    named = SPACES[space]
    return weighted(block, named.writers, seen), weighted(block, named.readers, seen)


def keep_units(block: Block, space: str, kept: Tensor, units: int | None = None) -> None:
    """Remove everything of a space but the kept units, from all matrices on both sides.

    Args:
        block: rewritten.
        space: ffn or heads.
        kept: sorted numbers of the units that stay.
        units: how many there are; each has the same number of features. None for features.
    """
    for dim, names in enumerate((SPACES[space].writers, SPACES[space].readers)):
        for name in names:
            if name not in block.family.matrices:
                continue
            linear = block.linear(name)
            features = torch.arange(linear.weight.shape[dim], device=kept.device)
            chosen = features.view(units or len(features), -1)[kept].flatten()
            block.replace(name, select(linear, chosen, dim))
