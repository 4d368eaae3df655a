"""A model as methods see it: blocks that are opened one at a time.

`Source` holds everything in memory. `models.streaming` reads each block from disk when it is opened
and writes it when it is closed; no method knows the difference.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from lorap_exp.models.families import Block, blocks_of


class Source:
    """A whole model in memory.

    `model` is the architecture with its embedding, norms and head; its blocks hold their weights
    inside `opened` (here always).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def blocks(self) -> Sequence[Block]:
        return blocks_of(self.model)

    @contextmanager
    def opened(self, block: Block, *, rewrite: bool = True) -> Iterator[Block]:
        """The block with its weights; what is rewritten inside stays when `rewrite`."""
        yield block
