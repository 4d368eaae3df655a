"""A model as methods see it: blocks that are opened one at a time.

`Source` holds everything in memory. `models.streaming` reads each block from disk when it is opened
and writes it when it is closed; no method knows the difference.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from lorap_exp.models.families import Block, blocks_of
from lorap_exp.planning.edits import Edit


class Source:
    """A whole model in memory.

    `model` is the architecture with its embedding, norms and head. It runs as it is; its blocks
    show their weights inside `opened` (here always).
    """

    streamed = False
    """Blocks come from disk."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def blocks(self) -> Sequence[Block]:
        return blocks_of(self.model)

    def adopt(self, model: PreTrainedModel) -> None:
        """Go on with another model."""
        self.model = model

    def restart(self) -> None:
        """Forget what was rewritten before the process was killed."""

    def finished(self, block: Block) -> bool:
        """It was rewritten before the process was killed."""
        return False

    def hold(self, carry: Mapping[str, dict[str, Any]]) -> None:
        """Keep what steps hand on from block to block; put in what they left before a kill."""

    def note(self, edits: Sequence[Edit]) -> None:
        """What was done to the open block, for a source that keeps it."""

    @property
    def done(self) -> Mapping[int, list[Edit]]:
        """What was done to the blocks that are finished."""
        return {}

    @contextmanager
    def originals(self) -> Iterator[None]:
        """Blocks run as they were before anything was rewritten, where that can be had."""
        yield

    @contextmanager
    def opened(
        self, block: Block, *, rewrite: bool = True, original: bool = False
    ) -> Iterator[Block]:
        """The block with its weights; what is rewritten inside stays when `rewrite`.

        `original`: as it was before anything was rewritten, where that can be had.
        """
        yield block

    @contextmanager
    def amended(self, block: Block) -> Iterator[Block]:
        """A block that may have been rewritten before, to be given other values; shapes stay."""
        yield block
