"""Hidden states of the calibration set between two blocks, and how the model calls each block."""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lorap_exp.models.families import Block
from lorap_exp.models.source import Source

Place = Literal["device", "host", "disk"]
"""Where hidden states wait: on the device, in host memory, or in a memory-mapped file."""


@dataclass(frozen=True)
class Call:
    """How the model called a block, apart from the hidden states: everything is passed on."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Stream:
    """Hidden states (B, T, H) of every batch; reading brings a batch to the device."""

    def __init__(
        self,
        states: Iterable[Tensor],
        calls: dict[int, list[Call]],
        device: torch.device,
        place: Place,
    ) -> None:
        self.calls, self.device, self.place = calls, device, place
        self._batches: list[Tensor] = []
        for batch in states:
            self.append(batch)

    def append(self, batch: Tensor) -> None:
        """The hidden states of one more batch."""
        self._batches.append(self._put(batch))

    def _put(self, batch: Tensor) -> Tensor:
        if self.place == "device":
            return batch
        if self.place == "host":
            return batch.cpu()
        with tempfile.TemporaryDirectory(prefix="lorap_exp-") as folder:
            file = str(Path(folder) / "states.bin")
            held = torch.from_file(file, shared=True, size=batch.numel(), dtype=batch.dtype)
        return held.view(batch.shape).copy_(batch)  # the file lives as long as it is mapped

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Tensor:
        return self._batches[number].to(self.device)

    def call(self, number: int, position: int) -> Call:
        """How the block at a position of the list is called for a batch."""
        return self.calls[len(self._batches[number])][position]

    def following(self, states: Iterable[Tensor]) -> "Stream":
        """The stream of the next block."""
        return Stream(states, self.calls, self.device, self.place)


def open_stream(source: Source, ids: Tensor, batch_size: int, place: Place) -> Stream:
    """The inputs of the first block, and how each block is called, for each batch size.

    Every block is replaced by one that records its arguments and returns its input, so this costs
    an embedding look-up. Arguments of all blocks are kept because families with local and global
    layers pass different masks.
    """
    calls: dict[int, list[Call]] = {}
    blocks = source.blocks

    def inputs() -> Iterable[Tensor]:
        for batch in ids.split(batch_size):
            recorded = record(source, blocks, batch.to(source.device))
            calls.setdefault(len(batch), [call for _, call in recorded])
            yield recorded[0][0]

    return Stream(inputs(), calls, source.device, place)


@torch.no_grad()
def record(source: Source, blocks: Sequence[Block], ids_BT: Tensor) -> list[tuple[Tensor, Call]]:
    """What each block would be called with; no block runs, all get the first one's input."""
    recorded: list[tuple[Tensor, Call]] = []

    def recording(block: Block) -> Callable[..., Any]:
        def instead(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            recorded.append((hidden, Call(args, kwargs)))
            return block.returning(hidden)

        return instead

    try:
        for block in blocks:
            block.module.forward = recording(block)
        source.model.get_decoder()(ids_BT, use_cache=False)
    finally:
        for block in blocks:
            vars(block.module).pop("forward", None)
    return recorded


def logits_after(source: Source, hidden_BTH: Tensor, ids_BT: Tensor) -> Tensor:
    """Logits (B, T, V) of the hidden states behind the last block.

    The model runs with its blocks bypassed, so its own norm, head and scaling are what counts; of
    `ids_BT` only the shape does.
    """
    blocks = source.blocks
    try:
        for block in blocks:
            block.module.forward = lambda *_, own=block, **__: own.returning(hidden_BTH)
        logits: Tensor = source.model(input_ids=ids_BT, use_cache=False).logits
    finally:
        for block in blocks:
            vars(block.module).pop("forward", None)
    return logits


def run_layer(layer: Callable[..., Any], hidden: Tensor, call: Call) -> Tensor:
    """Hidden states after a layer, called as the model calls it."""
    output = layer(hidden, *call.args, **call.kwargs)
    return output[0] if isinstance(output, tuple) else output
