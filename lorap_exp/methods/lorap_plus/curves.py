"""What each size of each part of a block would cost the model, from the curvature of its loss."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from lorap_exp.calibration.evidence import Evidence
from lorap_exp.calibration.probes import Probe
from lorap_exp.models.families import Block
from lorap_exp.ops.curvature import Elimination, Metric, balanced, eliminate, tails
from lorap_exp.planning.nested import Module, Ranks, Values, rank_costs
from lorap_exp.planning.shapes import BlockShape

FORM = "pivoted"
"""How factors are stored."""
FULL = ("q", "k", "v", "o", "down")
"""Matrices whose gradients are measured as a full moment; gate and up have its diagonal."""
VALUE_STEPS, CHANNEL_STEPS = 16, 16
"""Sizes at which the damage of removing value features and channels is computed."""
ANCHORS = (0, 8)
"""Of the channel sizes, those at which the spectra of gate and up are computed."""
VALUE_WIDTHS = 48
"""Widths of the value features that may be chosen."""
RANK_STEP, WIDE_RANK_STEP, CHANNEL_STEP = 4, 8, 16
"""Ranks of attention and of gate and up, and channels, are chosen in steps of these."""


@dataclass(frozen=True)
class DamageCurves:
    """Damages of one block: tails of spectra, and eliminations of value features and channels.

    Attributes:
        share_s: shrinkage of input moments towards their diagonal.
        share_g: shrinkage of gradient moments.
        sequences: of the calibration, on which gradients are measured; None for all.
    """

    share_s: float
    share_g: float
    sequences: int | None
    name: ClassVar[str] = "curves"

    def needs(self) -> Iterable[Probe]:
        gradients = [Probe(name, "gradient_moment") for name in FULL]
        inputs = [Probe(name, "weighted_moment") for name in FULL]
        squares = [Probe(name, "gradient_square") for name in ("gate", "up")]
        return [*gradients, *inputs, *squares, Probe("up", "second_moment")]

    @torch.no_grad()
    def derive(self, block: Block, seen: Evidence) -> dict[str, Tensor]:
        outputs = {n: Metric(seen[Probe(n, "gradient_moment")], self.share_g) for n in FULL}
        inputs = {n: Metric(seen[Probe(n, "weighted_moment")], self.share_s) for n in FULL}
        found = {
            name: tails(block.weight(name), outputs[name], inputs[name])
            for name in FULL
            if name != "down"
        }
        found |= self._values(block, outputs["o"].shrunk, inputs["o"].shrunk)
        return found | self._channels(block, seen, outputs["down"].shrunk, inputs["down"].shrunk)

    def _values(self, block: Block, metric: Tensor, moment: Tensor) -> dict[str, Tensor]:
        heads = ValueHeads(block)
        turn, back = heads.basis(moment, metric)
        units = heads.units()
        sizes = steps(len(units), VALUE_STEPS)
        rotated = heads.weight("o").double() @ back
        gone = eliminate(rotated.float(), (turn @ moment @ turn.mT).float(), metric, sizes, units)
        return _elimination("values", sizes, gone)

    def _channels(
        self, block: Block, seen: Evidence, metric: Tensor, moment: Tensor
    ) -> dict[str, Tensor]:
        down = block.weight("down")
        sizes = steps(down.shape[1], CHANNEL_STEPS)
        gone = eliminate(down.float(), moment.float(), metric, sizes)
        found = _elimination("ffn", sizes, gone)
        inputs = Metric(seen[Probe("up", "second_moment")].second, self.share_s)
        for name in ("gate", "up"):
            if name not in block.family.matrices:
                continue
            outputs = Metric(seen[Probe(name, "gradient_square")], self.share_g)
            for anchor in ANCHORS:
                kept = gone.kept[anchor]
                part = block.weight(name)[kept]
                found[f"{name}.{sizes[anchor]}"] = tails(part, outputs.of(kept), inputs)
        return found


def _elimination(space: str, sizes: Sequence[int], gone: Elimination) -> dict[str, Tensor]:
    """Of the units of a space, as it is stored."""
    return {
        space: torch.tensor(gone.damages),
        f"{space}.sizes": torch.tensor(sizes),
        f"{space}.order": gone.order,
    }


def steps(units: int, count: int) -> list[int]:
    """`count` sizes from all units down to a few, in equal steps."""
    return [units - units * step // count for step in range(count)]


class ValueHeads:
    """The value heads of a block, and the columns of `o` that read each of their features."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self.groups = block.heads
        self.features = block.weight("v").shape[0] // self.groups
        self.readers = block.weight("o").shape[1] // block.weight("v").shape[0]

    def weight(self, name: str) -> Tensor:
        return self._block.weight(name)

    def units(self) -> Tensor:
        """Columns of `o` that read each value feature, (features of all heads, readers)."""
        group = torch.arange(self.groups)[:, None, None]
        feature = torch.arange(self.features)[None, :, None]
        reader = torch.arange(self.readers)[None, None, :]
        columns = (group * self.readers + reader) * self.features + feature
        return columns.flatten(0, 1).to(self.weight("o").device)

    def basis(self, moment: Tensor, metric: Tensor) -> tuple[Tensor, Tensor]:
        """Of all inputs of `o`: T, block-diagonal and alike for the readers of a head; T^-1."""
        turns, backs = self.turns(moment, metric)
        repeat = [(t, b) for t, b in zip(turns, backs, strict=True) for _ in range(self.readers)]
        return torch.block_diag(*(t for t, _ in repeat)), torch.block_diag(*(b for _, b in repeat))

    def turns(self, moment: Tensor, metric: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """T of each value head and its inverse."""
        outputs = self.weight("o").double().unflatten(1, (self.groups, self.readers, -1))
        width, found = self.features, []
        for group in range(self.groups):
            first = group * self.readers * width
            starts = range(first, first + self.readers * width, width)
            own = torch.stack([moment[at : at + width, at : at + width] for at in starts])
            found.append(balanced(outputs[:, group].permute(1, 0, 2), own, metric))
        return [turn for turn, _ in found], [back for _, back in found]


def modules_of(shape: BlockShape, curves: Mapping[str, Tensor], round_to: int = 1) -> list[Module]:
    """The parts of one block with the damage and cost of all their sizes.

    Ranks and widths are multiples of `round_to`, above 1 of nothing else but that; full sizes stay.
    """
    parts = [_alone(shape, name, curves, round_to) for name in ("q", "k")]
    return [*parts, _values(shape, curves, round_to), _channels(shape, curves, round_to)]


def stride(usual: int, round_to: int) -> int:
    """In which sizes are chosen."""
    return usual if round_to == 1 else round_to


def _grid(full: int, step: int) -> tuple[int, ...]:
    return (*range(step, full, step), full)


def _alone(shape: BlockShape, name: str, curves: Mapping[str, Tensor], round_to: int) -> Module:
    matrix, tails = shape.matrices[name], curves[name].numpy()
    outs, ins = matrix.out_features, matrix.in_features
    ranks = _grid(min(outs, ins), stride(RANK_STEP, round_to))
    damages = tails[list(ranks)] * (np.array(ranks) < min(outs, ins))
    costs = rank_costs(outs, ins, ranks, FORM)
    found = Ranks(name, ranks, costs[None], damages[None])
    return Module(shape.index, None, (0,), np.zeros(1), (found,))


def _values(shape: BlockShape, curves: Mapping[str, Tensor], round_to: int) -> Module:
    full = shape.matrices["v"].out_features
    widths = _widths(full, max(1, full // VALUE_WIDTHS), curves["values.sizes"], round_to)
    damages = _between(widths, curves["values.sizes"], curves["values"])
    readers = shape.matrices["o"].in_features // full
    hidden = shape.matrices["o"].out_features
    sizes = {
        "v": [(width, shape.hidden) for width in widths],
        "o": [(hidden, width * readers) for width in widths],
    }
    step = stride(RANK_STEP, round_to)
    v, o = (_ranks_below(n, curves[n].numpy(), widths, sizes[n], step) for n in ("v", "o"))
    return Module(shape.index, "values", widths, damages, (v, o))


def _widths(full: int, usual: int, known: Tensor, round_to: int) -> tuple[int, ...]:
    """Widths that may be chosen, ascending, none below the least whose damage is known."""
    step = stride(usual, round_to)
    found = range(full, 0, -step) if round_to == 1 else _grid(full, step)
    return tuple(sorted(width for width in found if width >= int(known[-1])))


def _ranks_below(
    name: str,
    tails: Values,
    widths: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    step: int,
) -> Ranks:
    """Ranks of a matrix at each width: the tail of its whole spectrum, less what the width lost."""
    ranks = _grid(min(sizes[-1]), step)
    costs, damages = [], []
    for width, (outs, ins) in zip(widths, sizes, strict=True):
        most = min(outs, ins)
        usable = np.array(ranks) < most
        lost = tails[min(most, len(tails) - 1)]
        own = np.maximum(tails[list(ranks)] * (widths[-1] / width) - lost, 0.0)
        damages.append(np.where(usable, own, 0.0))
        costs.append(np.where(usable, rank_costs(outs, ins, ranks, FORM), float(outs * ins)))
    return Ranks(name, ranks, np.array(costs), np.array(damages))


def _channels(shape: BlockShape, curves: Mapping[str, Tensor], round_to: int) -> Module:
    full, hidden = shape.size("ffn"), shape.hidden
    widths = _widths(full, CHANNEL_STEP, curves["ffn.sizes"], round_to)
    damages = _between(widths, curves["ffn.sizes"], curves["ffn"])
    ranks = _grid(hidden, stride(WIDE_RANK_STEP, round_to))
    matrices = []
    for name in ("gate", "up"):
        if name in shape.matrices:
            matrices.append(_ranks_at(name, curves, widths, ranks, hidden))
    dense = np.array([[float(hidden * width)] for width in widths])
    matrices.append(Ranks("down", (full,), dense, np.zeros_like(dense)))
    return Module(shape.index, "ffn", widths, damages, tuple(matrices))


def _ranks_at(
    name: str,
    curves: Mapping[str, Tensor],
    widths: Sequence[int],
    ranks: tuple[int, ...],
    hidden: int,
) -> Ranks:
    """Ranks of gate or up at each width, between the widths at which spectra are known."""
    anchors = sorted(int(key.partition(".")[2]) for key in curves if key.startswith(f"{name}."))
    known = {a: curves[f"{name}.{a}"].numpy() for a in anchors}
    at = {a: tails[np.minimum(ranks, len(tails) - 1)] for a, tails in known.items()}
    low, high = anchors[0], anchors[-1]
    costs, damages = [], []
    for width in widths:
        share = (width - low) / (high - low) if width >= low else 0.0
        mixed = at[low] * (1 - share) + at[high] * share
        mixed = mixed if width >= low else mixed * width / low
        usable = np.array(ranks) < min(width, hidden)
        damages.append(np.where(usable, mixed, 0.0))
        whole = float(width * hidden)
        costs.append(np.where(usable, rank_costs(width, hidden, ranks, FORM), whole))
    return Ranks(name, ranks, np.array(costs), np.array(damages))


def _between(widths: Sequence[int], sizes: Tensor, damages: Tensor) -> Values:
    """Damages at every width by linear interpolation."""
    found: Values = np.interp(widths, sizes.flip(0).numpy(), damages.flip(0).numpy())
    return found
