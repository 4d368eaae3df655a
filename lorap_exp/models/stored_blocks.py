"""The blocks of a checkpoint as its files hold them, read one at a time and one ahead."""

import copy
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorap_exp.errors import LorapError
from lorap_exp.models.families import decoder_family
from lorap_exp.models.headers import weight_files
from lorap_exp.models.inspection import match_folder
from lorap_exp.models.modeling_compressed import split_layer
from lorap_exp.models.tensor_files import Place, places_in, read


class StoredBlocks:
    """Blocks by their position in the files.

    Args:
        folder: of a checkpoint in safetensors, one file or shards.
        model: its architecture without weights, fused projections together; not changed.

    Raises:
        LorapError: the files are no safetensors, or a tensor of a block is not there as it is.
    """

    def __init__(self, folder: Path, model: PreTrainedModel) -> None:
        family = decoder_family(model)
        self._path, self._fused = family.layers, family.fused
        self._places = _places(folder, match_folder(folder, model).stored)
        layers = list(model.get_submodule(family.layers).children())
        self._names = [self._check(model, number, layer) for number, layer in enumerate(layers)]
        stock = getattr(model.config, "stock_class", None) is None
        self._unsplit = [
            copy.deepcopy(one) if stock and self._splits(one) else None for one in layers
        ]
        """Layers whose projections are split, or turned, once they are read."""
        self._pool = ThreadPoolExecutor(1)
        self._ahead: tuple[int, Future[dict[str, Tensor]]] | None = None
        self._last = -1

    def _splits(self, layer: nn.Module) -> bool:
        return bool(self._fused) or any(isinstance(m, Conv1D) for m in layer.modules())

    def _check(self, model: PreTrainedModel, number: int, layer: nn.Module) -> list[str]:
        """The names of a layer's tensors, all of which have a place: experts may be merged on
        loading."""
        state = layer.state_dict()
        for name, tensor in state.items():
            place = self._places.get(self._prefix(number) + name)
            if place is None or place.shape != tuple(tensor.shape):
                raise LorapError(
                    f"stream must be false for '{model.config.model_type}' models whose files hold "
                    f"no tensor '{self._prefix(number)}{name}': it is put together on loading"
                )
        return list(state)

    def _prefix(self, number: int) -> str:
        return f"{self._path}.{number}."

    @property
    def others(self) -> dict[str, Place]:
        """Tensors that belong to no block."""
        return {n: p for n, p in self._places.items() if not n.startswith(self._path + ".")}

    def read(self, number: int, order: Sequence[int]) -> dict[str, Tensor]:
        """The tensors of a block, and a thread that reads those of the next one on the way.

        `order` is that of the blocks that are left, of which this is one; it is walked up or down.
        """
        if self._ahead is not None and self._ahead[0] == number:
            state = self._ahead[1].result()
        else:
            state = self._read(number)
        self._ahead = None
        at = order.index(number)
        following = at - 1 if number < self._last else at + 1
        self._last = number
        if 0 <= following < len(order):
            ahead = order[following]
            self._ahead = (ahead, self._pool.submit(self._read, ahead))
        return state

    def _read(self, number: int) -> dict[str, Tensor]:
        prefix = self._prefix(number)
        found = {name: read(self._places[prefix + name]) for name in self._names[number]}
        for name, tensor in found.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise LorapError(
                    f"model.path: the weights of '{prefix}{name}' must be finite numbers"
                )
        return found

    def split(self, number: int, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors of a block with a matrix for each projection."""
        unsplit = self._unsplit[number]
        if unsplit is None:
            return state
        layer = copy.deepcopy(unsplit)
        layer.load_state_dict(state, assign=True)
        split_layer(layer.requires_grad_(False), self._fused)
        return layer.state_dict()


def _places(folder: Path, names: Mapping[str, str]) -> dict[str, Place]:
    """Where every tensor of a checkpoint is, by its name in the architecture."""
    files = weight_files(folder)
    if odd := next((path for path in files if path.suffix != ".safetensors"), None):
        raise LorapError(f"stream must be false where weights are no safetensors, got '{odd.name}'")
    found = {name: place for path in files for name, place in places_in(path).items()}
    return {names.get(name, name): place for name, place in found.items()}
