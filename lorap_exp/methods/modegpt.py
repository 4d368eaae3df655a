"""MoDeGPT: modules compressed as one, so that no second factor is stored.

Paper: arXiv 2408.09632 (ICLR 2025), algorithms 1 to 3. Public code read: cbacary/MoDeGPT.
Three steps share its layer shares softmax(-block influence / T), which `method.allocation` names:
`NystromChannels` on the MLP, `QueryPairs` on q and k, `ValueFeatures` on v and o.
Where ours differs: the moments of q, k and v are measured at their outputs, biases included;
grouped value heads share one basis that is best for all their query heads; narrow heads are stored
narrow and placed into the full width when they are computed, which works with every rotary
embedding. Published: Llama-2-7B at 50 %, WikiText-2 11.88.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from transformers import PreTrainedConfig

from lorap_exp.calibration.evidence import Evidence, Survey
from lorap_exp.calibration.probes import Asked, Probe
from lorap_exp.errors import LorapError
from lorap_exp.methods.contract import Carry, Part, Step
from lorap_exp.methods.influence import BlockInfluence, with_importance
from lorap_exp.methods.pruning import size_of
from lorap_exp.models.families import Block
from lorap_exp.models.rewriting import gathered, scattered, select
from lorap_exp.ops.modules import (
    refit_columns,
    ridge_leverage,
    rotary_pair_scores,
    value_features,
)
from lorap_exp.planning.edits import Edit
from lorap_exp.planning.options import Option, width_option
from lorap_exp.planning.shapes import SPACES, Shape


class ModuleStep(Step):
    """What the three have in common: one space, whose layers count by their influence."""

    space = ""
    step = 1

    @property
    def sized(self) -> Sequence[str]:
        return SPACES[self.space].matrices

    def survey(self, shape: Shape, edits: Sequence[Edit]) -> Iterable[Asked]:
        return [BlockInfluence()] if edits else []

    def options(self, shape: Shape, seen: Survey | None) -> list[Option]:
        options = [width_option(block, self.space, self.step) for block in shape.blocks]
        return with_importance(options, seen)


@dataclass(frozen=True, config={"extra": "forbid"})
class NystromChannels(ModuleStep):
    """Keep the channels that the others predict worst, and refit `down` on them.

    Attributes:
        ridge: of the leverage scores, relative to the mean second moment of the channels.
        refit_ridge: of the refit, relative to the same.
    """

    ridge: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    refit_ridge: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    space = "ffn"

    def probes(self, names: Sequence[str]) -> Iterable[Probe]:
        return [Probe("down", "second_moment")]

    @torch.no_grad()
    def apply(
        self, part: Part, edits: Sequence[Edit], seen: Evidence, carry: Carry
    ) -> Sequence[Edit]:
        if (width := size_of(edits, "ffn")) is None:
            return ()
        second = seen[Probe("down", "second_moment")].second
        unit = float(second.diagonal().mean())
        scores = ridge_leverage(second, self.ridge * unit)
        kept = scores.argsort(descending=True, stable=True)[:width].sort().values
        keep_and_refit(part, second, kept, self.refit_ridge * unit)
        return edits


@torch.no_grad()
def keep_and_refit(part: Part, second_CC: Tensor, kept: Tensor, ridge: float) -> None:
    """Narrow the MLP to the kept channels, with `down` refitted on them."""
    block = part.block
    down = block.linear("down")
    fitted = refit_columns(down.weight, second_CC, kept, ridge)
    for name in ("gate", "up"):
        if name in block.family.matrices:
            block.replace(name, select(block.linear(name), kept, dim=0))
    narrow = select(down, kept, dim=1)
    narrow.weight.copy_(fitted)
    block.replace("down", narrow)


@dataclass(frozen=True, config={"extra": "forbid"})
class QueryPairs(ModuleStep):
    """Keep whole rotary pairs of every key-value head, the same ones in its query heads."""

    space = "query"
    step = 2

    def check(self, config: PreTrainedConfig) -> None:
        refuse_other_rotations(config)

    def probes(self, names: Sequence[str]) -> Iterable[Probe]:
        return [Probe("q:out", "squared_norm"), Probe("k:out", "squared_norm")]

    def apply(
        self, part: Part, edits: Sequence[Edit], seen: Evidence, carry: Carry
    ) -> Sequence[Edit]:
        if (size := size_of(edits, "query")) is None:
            return ()
        groups, half = part.shape.value_heads, part.shape.size("query") // 2
        k = seen[Probe("k:out", "squared_norm")].view(groups, -1)
        q = seen[Probe("q:out", "squared_norm")].view(groups, -1, 2 * half)
        kept = []
        for group in range(groups):
            order = rotary_pair_scores(q[group], k[group]).argsort(descending=True, stable=True)
            pairs = order[: size // 2].sort().values
            kept.append(torch.cat([pairs, pairs + half]))
        per_head = torch.stack(kept)
        for name, heads in (("k", 1), ("q", q.shape[1])):
            rows = features(per_head.repeat_interleave(heads, 0), 2 * half)
            part.block.replace(name, scattered(part.block.linear(name), rows))
        return edits


@dataclass(frozen=True, config={"extra": "forbid"})
class ValueFeatures(ModuleStep):
    """Rotate every value head so that its last features matter least to o, and drop those."""

    space = "value"

    def probes(self, names: Sequence[str]) -> Iterable[Probe]:
        return [Probe("v:out", "second_moment")]

    @torch.no_grad()
    def apply(
        self, part: Part, edits: Sequence[Edit], seen: Evidence, carry: Carry
    ) -> Sequence[Edit]:
        if (size := size_of(edits, "value")) is None:
            return ()
        block, groups, width = part.block, part.shape.value_heads, part.shape.size("value")
        v, o = block.linear("v"), block.linear("o")
        second = seen[Probe("v:out", "second_moment")].second
        outputs = o.weight.double().unflatten(1, (groups, -1, width)).permute(1, 2, 0, 3)
        values, readers, biases = [], [], []
        for group, heads in enumerate(outputs):
            own = slice(group * width, (group + 1) * width)
            turn, read, _ = value_features(heads, second[own, own])
            values.append(turn[:size] @ v.weight[own].double())
            readers.append(read[..., :size])
            if v.bias is not None:
                biases.append(turn[:size] @ v.bias[own].double())
        narrow_values(block, width, values, readers, biases)
        return edits


@torch.no_grad()
def narrow_values(
    block: Block,
    width: int,
    values: Sequence[Tensor],
    readers: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> None:
    """Give v and o the first features of every value head.

    Args:
        block: rewritten.
        width: of a head before.
        values: rows of v that compute the features of each value head, (features, hidden).
        readers: columns of o that read them, (query heads, hidden, features) of each value head.
        biases: of the features; empty where v has none.
    """
    v, o = block.linear("v"), block.linear("o")
    place = torch.arange(len(values[0]), device=values[0].device)
    heads = len(values) * len(readers[0])
    narrow_v = scattered(v, features(place.repeat(len(values), 1), width))
    narrow_o = gathered(o, features(place.repeat(heads, 1), width))
    narrow_v.inner.weight.copy_(torch.cat(list(values)))
    if biases:
        narrow_v.inner.bias.copy_(torch.cat(list(biases)))
    narrow_o.inner.weight.copy_(torch.stack(list(readers)).permute(2, 0, 1, 3).flatten(1))
    block.replace("v", narrow_v)
    block.replace("o", narrow_o)


def features(kept_NR: Tensor, width: int) -> Tensor:
    """Numbers of the kept features of N heads of a width, in all heads together."""
    starts = torch.arange(len(kept_NR), device=kept_NR.device)[:, None] * width
    return (starts + kept_NR).flatten()


def refuse_other_rotations(config: PreTrainedConfig) -> None:
    """Raise unless rotary pairs are (j, j + D/2) over the whole head."""
    partial = getattr(config, "partial_rotary_factor", None) or 1.0
    if partial != 1.0 or config.model_type in ("cohere", "cohere2", "glm4", "glm"):
        raise LorapError(
            f"method: whole rotary pairs can be kept only where a head's features j and j + D/2 "
            f"turn together, got the rotary embedding of '{config.model_type}'"
        )
