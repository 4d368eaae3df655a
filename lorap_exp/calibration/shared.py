"""Statistics and factorisations of a dense model that all jobs of a sweep share.

With `propagation="original"` the inputs of every block are those of the dense model, so one
calibration and one factorisation per matrix serve every ratio and allocation. With "compressed"
that holds for the first block, and for what needs no inputs (plain SVD).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorap_exp.calibration.statistics import Moments
from lorap_exp.calibration.walk import Statistics, Values, Wanted, walk
from lorap_exp.errors import LorapError
from lorap_exp.models.families import Block, blocks_of
from lorap_exp.workspace.progress import say
from lorap_exp.workspace.store import Store


@dataclass(frozen=True)
class Sharing:
    """The store, and what statistics of a dense model depend on.

    Attributes:
        weights: model and dtype.
        inputs: calibration tokens and batch size.
    """

    store: Store
    weights: Mapping[str, Any]
    inputs: Mapping[str, Any]

    def keep(
        self, block: int, name: str, inputs: bool, compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """See `walk.Keeper`."""
        key = {**self.weights, **(self.inputs if inputs else {}), "block": block, "name": name}
        return self.store.tensors("factors", key, compute)


@torch.no_grad()
def shared_walk(
    model: PreTrainedModel,
    ids: Tensor,
    wanted: Wanted,
    batch_size: int,
    propagation: str,
    *,
    sharing: Sharing | None,
) -> Iterator[tuple[Block, Statistics]]:
    """As `walk`, with statistics of dense inputs from the store; missing ones are added first."""
    if sharing is None or propagation != "original" or not wanted:
        yield from walk(model, ids, wanted, batch_size, propagation, keeper=sharing)
        return
    blocks = blocks_of(model)
    names = {matrix: sorted(statistics) for matrix, statistics in wanted.items()}
    whole = {**sharing.weights, **sharing.inputs, "wanted": names}
    keys = [whole | {"block": block.index} for block in blocks]
    with sharing.store.lock("walks", whole):
        if not all(sharing.store.sound("statistics", key) for key in keys):
            dense = walk(model, ids, wanted, batch_size, "original")
            for key, (_, statistics) in zip(keys, dense, strict=True):
                sharing.store.tensors("statistics", key, partial(pack, statistics, wanted))
        held = sharing.store.pin("statistics", keys)
    if not held:
        say("  warning: store.limit_gib does not hold the statistics of all blocks: not shared")
        yield from walk(model, ids, wanted, batch_size, propagation, keeper=sharing)
        return
    for key, block in zip(keys, blocks, strict=True):
        read = partial(_read, sharing.store, key, model.device)
        yield block, Statistics(read, block.index, sharing, dense_inputs=True)


def _read(store: Store, key: Mapping[str, Any], device: torch.device) -> Values:
    return unpack(store.tensors("statistics", key, _gone), device)


def _gone() -> dict[str, Tensor]:
    raise LorapError(
        "store.limit_gib must hold the statistics of all blocks of the jobs that run at once: one "
        "was removed or damaged while it was needed; the same command goes on"
    )


def pack(statistics: Statistics, wanted: Wanted) -> dict[str, Tensor]:
    """Values as named tensors; a value that several matrices share is kept once."""
    shared: dict[int, tuple[str, Any, list[str]]] = {}
    for matrix, makers in wanted.items():
        for name in makers:
            value = statistics[matrix, name]
            shared.setdefault(id(value), (name, value, []))[2].append(matrix)
    tensors: dict[str, Tensor] = {}
    for name, value, matrices in shared.values():
        label = f"{'+'.join(matrices)}|{name}"
        if isinstance(value, Moments):
            tensors |= {f"{label}|second": value.second, f"{label}|mean": value.mean}
        else:
            tensors[label] = value
    return tensors


def unpack(tensors: Mapping[str, Tensor], device: torch.device) -> Values:
    """The reverse of `pack`."""
    values: dict[tuple[str, str], Any] = {}
    for label, tensor in tensors.items():
        matrices, name, *field = label.split("|")
        if field == ["mean"]:
            continue
        value: Any = tensor.to(device)
        if field:
            value = Moments(value, tensors[f"{matrices}|{name}|mean"].to(device))
        values |= {(matrix, name): value for matrix in matrices.split("+")}
    return values
