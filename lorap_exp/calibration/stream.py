"""Hidden states of the calibration set between two blocks, and how the model calls each block."""

import mmap
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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


class OnDisk:
    """A tensor in a file of its own, which goes when the object does.

    The file is mapped only while it is copied, so it holds no memory of the process.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._shape, self._dtype = tensor.shape, tensor.dtype
        self._file = tempfile.TemporaryFile(prefix="lorap_exp-")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        raw = tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy()
        self._file.write(raw.data)
        self._file.flush()

    def __len__(self) -> int:
        return self._shape[0]

    def read(self) -> Tensor:
        """A copy in host memory."""
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return torch.frombuffer(bytearray(view), dtype=self._dtype).view(self._shape)


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
        self._batches: list[Tensor | OnDisk] = []
        for batch in states:
            self.append(batch)

    def append(self, batch: Tensor) -> None:
        """The hidden states of one more batch."""
        self._batches.append(self._put(batch))

    def _put(self, batch: Tensor) -> "Tensor | OnDisk":
        if self.place == "device":
            return batch
        if self.place == "host":
            return batch.cpu()
        return OnDisk(batch)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Tensor:
        batch = self._batches[number]
        return (batch.read() if isinstance(batch, OnDisk) else batch).to(self.device)

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
    with entered(source.blocks, hidden_BTH):
        logits: Tensor = source.model(input_ids=ids_BT, use_cache=False).logits
    return logits


@contextmanager
def entered(blocks: Sequence[Block], hidden_BTH: Tensor | None) -> Iterator[None]:
    """These blocks do not run: each hands on its input, the last one the given hidden states.

    Without hidden states the last one hands on its input too.
    """

    def bypass(block: Block, given: Tensor | None) -> Callable[..., Any]:
        return lambda hidden, *_, **__: block.returning(hidden if given is None else given)

    try:
        for block in blocks:
            last = block is blocks[-1]
            block.module.forward = bypass(block, hidden_BTH if last else None)
        yield
    finally:
        for block in blocks:
            vars(block.module).pop("forward", None)


def run_layer(layer: Callable[..., Any], hidden: Tensor, call: Call) -> Tensor:
    """Hidden states after a layer, called as the model calls it."""
    output = layer(hidden, *call.args, **call.kwargs)
    return output[0] if isinstance(output, tuple) else output
