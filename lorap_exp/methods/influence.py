"""Block influence: how much a layer turns the hidden states (ShortGPT, arXiv 2403.03853)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lorap_exp.calibration.evidence import Survey
from lorap_exp.methods.streamline.selection import Progress, hidden_states
from lorap_exp.models.source import Source
from lorap_exp.ops.similarity import cosines, unit_rows
from lorap_exp.planning.options import Option


@dataclass(frozen=True)
class BlockInfluence:
    """1 - mean cosine of a block's input and output, for every block: a model probe."""

    name: ClassVar[str] = "influence"

    @torch.no_grad()
    def measure(
        self, source: Source, ids: Tensor, batch_size: int, progress: Progress
    ) -> dict[str, Any]:
        """By block number, as text: JSON has no other keys."""
        model, blocks = source.model, source.blocks
        sums = [0.0] * len(blocks)
        for batch in progress(ids.split(batch_size)):
            units = [unit_rows(h) for h in hidden_states(model, blocks, batch.to(source.device))]
            for number in range(len(blocks)):
                sums[number] += float(cosines(units[number], units[number + 1]).double().sum())
        tokens = ids.numel()
        return {str(b.index): 1 - s / tokens for b, s in zip(blocks, sums, strict=True)}


def with_importance(options: Sequence[Option], seen: Survey | None) -> list[Option]:
    """The options with their block's influence, where it was measured."""
    if seen is None:
        return list(options)
    found = seen.of(BlockInfluence())
    return [replace(option, importance=found[str(option.block)]) for option in options]
