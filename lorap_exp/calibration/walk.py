"""The walk over a model, one decoder block at a time.

`walk` yields each block while it is still dense, with statistics of its inputs; the caller
rewrites the block; on resumption the *rewritten* block produces the inputs of the next one
(LoRAP, arXiv 2404.09695, section 3; `propagation="original"` feeds dense outputs instead). Memory
holds one block's statistics and the hidden states of the calibration set.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorap_exp.errors import LorapError
from lorap_exp.models.families import Block, blocks_of


class Statistic(Protocol):
    """Accumulates batches of a linear layer's input (tokens, I); `value` after N sequences."""

    def update(self, x_TI: Tensor) -> None: ...
    def value(self, sequences: int) -> Any: ...


Values = Mapping[tuple[str, str], Any]
"""(matrix name, statistic name) -> value."""
Wanted = Mapping[str, Mapping[str, Callable[[], Statistic]]]
"""Matrix name -> statistic name -> constructor."""


@dataclass(frozen=True)
class Call:
    """How the model called a block, apart from the hidden states: everything is passed on."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Keeper(Protocol):
    """Keeps what follows from a dense block, for other jobs too."""

    def keep(
        self, block: int, name: str, inputs: bool, compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Named tensors: found, else computed; `inputs` when they depend on statistics."""
        ...


class Statistics:
    """The values of one block: `statistics["q", "squared_norm"]`.

    Args:
        values: of the block, or a function that reads them when the first is asked for.
        block: number of the block.
        keeper: shares what is derived with other jobs.
        dense_inputs: the values are those of the dense model, whatever the ratio.
    """

    def __init__(
        self,
        values: Values | Callable[[], Values],
        block: int = 0,
        keeper: Keeper | None = None,
        dense_inputs: bool = False,
    ) -> None:
        self._values, self._block = values, block
        self._keeper, self._dense_inputs = keeper, dense_inputs
        self._derived: dict[str, dict[str, Tensor]] = {}

    def __getitem__(self, key: tuple[str, str]) -> Any:
        if callable(self._values):
            self._values = self._values()
        return self._values[key]

    def derive(
        self, name: str, compute: Callable[[], dict[str, Tensor]], *, inputs: bool
    ) -> dict[str, Tensor]:
        """What follows from the dense block, and from these values when `inputs`, computed once."""
        if name not in self._derived:
            shared = self._keeper is not None and (self._dense_inputs or not inputs)
            self._derived[name] = (
                self._keeper.keep(self._block, name, inputs, compute)
                if self._keeper is not None and shared
                else compute()
            )
        return self._derived[name]


@torch.no_grad()
def walk(
    model: PreTrainedModel,
    ids: Tensor,
    wanted: Wanted,
    batch_size: int,
    propagation: str,
    *,
    keeper: Keeper | None = None,
) -> Iterator[tuple[Block, Statistics]]:
    """Yield (block, statistics of its inputs) from first to last.

    Args:
        model: a dense model in evaluation mode; the caller may rewrite each yielded block.
        ids: calibration tokens (samples, length).
        wanted: which statistics of which matrices.
        batch_size: sequences at a time.
        propagation: "compressed" or "original" inputs for the next block.
        keeper: shares what is derived from dense blocks with other jobs.

    Raises:
        LorapError: a non-finite activation, with the block and the matrix.
    """
    blocks = blocks_of(model)
    if not wanted:
        yield from ((block, Statistics({}, block.index, keeper)) for block in blocks)
        return
    batches = list(ids.to(model.device).split(batch_size))
    hidden, calls = record_calls(model, blocks, batches)
    for position, block in enumerate(blocks):
        arguments = [calls[len(batch)][position] for batch in batches]
        accumulators: dict[tuple[str, str], Statistic] = {}
        last = block is blocks[-1]
        with observe(block, wanted, accumulators):
            dense = [
                run_layer(block.module, h, call) for h, call in zip(hidden, arguments, strict=True)
            ]
        values = _values(block, accumulators, len(ids))
        unchanged = position == 0 or propagation == "original"
        yield block, Statistics(values, block.index, keeper, unchanged)
        if last:
            return
        if propagation == "original":
            hidden = dense
        else:
            del dense
            hidden = [
                run_layer(block.module, h, call) for h, call in zip(hidden, arguments, strict=True)
            ]


def record_calls(
    model: PreTrainedModel, blocks: Sequence[Block], batches: Sequence[Tensor]
) -> tuple[list[Tensor], dict[int, list[Call]]]:
    """The inputs of the first block, and how each block is called, for each batch size.

    Every block is replaced by one that records its arguments and returns its input, so this costs
    an embedding look-up. Arguments of all blocks are kept because families with local and global
    layers pass different masks.
    """
    inputs: list[Tensor] = []
    calls: dict[int, list[Call]] = {}
    recorded: list[tuple[Tensor, Call]] = []

    def record(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        recorded.append((hidden, Call(args, kwargs)))
        return hidden

    try:
        for block in blocks:
            block.module.forward = record
        for batch in batches:
            recorded.clear()
            model.get_decoder()(batch, use_cache=False)
            inputs.append(recorded[0][0])
            calls.setdefault(len(batch), [call for _, call in recorded])
    finally:
        for block in blocks:
            del block.module.forward
    return inputs, calls


@contextmanager
def observe(
    block: Block, wanted: Wanted, accumulators: dict[tuple[str, str], Statistic]
) -> Iterator[None]:
    """Accumulate the wanted statistics while the block runs, once for each shared input."""
    hooks = []
    try:
        for group in block.family.shared_inputs:
            names = [name for name in group if name in wanted]
            makers = {key: make for name in names for key, make in wanted[name].items()}
            if not makers:
                continue
            shared = {key: make() for key, make in makers.items()}
            accumulators |= {(name, key): shared[key] for name in names for key in wanted[name]}

            def update(_: Any, inputs: tuple[Tensor, ...], shared: Any = shared) -> None:
                for statistic in shared.values():
                    statistic.update(inputs[0].flatten(0, -2))

            hooks.append(block.linear(names[0]).register_forward_pre_hook(update))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _values(
    block: Block, accumulators: Mapping[tuple[str, str], Statistic], sequences: int
) -> dict[tuple[str, str], Any]:
    values: dict[tuple[str, str], Any] = {}
    computed: dict[int, Any] = {}
    for (name, key), statistic in accumulators.items():
        if id(statistic) not in computed:
            computed[id(statistic)] = statistic.value(sequences)
        value = computed[id(statistic)]
        tensors = [value] if isinstance(value, Tensor) else list(vars(value).values())
        if not all(torch.isfinite(tensor).all() for tensor in tensors):
            raise LorapError(
                f"calibration: the inputs of {name} in block {block.index} are not finite; "
                f"try dtype=bfloat16 or dtype=float32"
            )
        values[name, key] = value
    return values


def run_layer(layer: nn.Module, hidden: Tensor, call: Call) -> Tensor:
    """Hidden states after a layer, called as the model calls it."""
    output = layer(hidden, *call.args, **call.kwargs)
    return output[0] if isinstance(output, tuple) else output
