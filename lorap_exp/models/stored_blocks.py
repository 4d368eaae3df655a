"""The blocks of a checkpoint as its files hold them, read one at a time and one ahead."""

import copy
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
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
        LorapError: the files are no safetensors, or not those of the architecture.
    """

    def __init__(self, folder: Path, model: PreTrainedModel) -> None:
        family = decoder_family(model)
        self._path, self._fused = family.layers, family.fused
        self._places = _places(folder, match_folder(folder, model).stored)
        self._conversion = Conversion(model)
        layers = list(model.get_submodule(family.layers).children())
        self._shapes = [{n: t.shape for n, t in layer.state_dict().items()} for layer in layers]
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

    def _prefix(self, number: int) -> str:
        return f"{self._path}.{number}."

    @property
    def others(self) -> dict[str, Place]:
        """Tensors that belong to no block."""
        inner = self._path + "."
        return {
            n: p for n, ps in self._places.items() if not n.startswith(inner) for p in ps.values()
        }

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
        found: dict[str, Tensor] = {}
        for name, shape in self._shapes[number].items():
            stored = {key: read(place) for key, place in self._places[prefix + name].items()}
            (first, *more) = stored.values()
            whole = not more and first.shape == shape
            found[name] = first if whole else self._conversion.joined(prefix + name, stored)
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


class Conversion:
    """What transformers does to the tensors of a checkpoint on loading: experts become one."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._config = model.config
        steps = get_model_conversion_mapping(model, add_legacy=False)
        self._renamings = [step for step in steps if isinstance(step, WeightRenaming)]
        self._converters = [step for step in steps if isinstance(step, WeightConverter)]

    def joined(self, name: str, stored: Mapping[str, Tensor]) -> Tensor:
        """The tensor `name` of the architecture, made of those that are stored for it."""
        by_pattern = {p: one for one in self._converters for p in one.source_patterns}
        converter: WeightConverter | None = None
        for key in sorted(stored, key=dot_natural_key):
            renamed, pattern = rename_source_key(key, self._renamings, self._converters)
            assert pattern is not None, f"'{key}' is stored as it is in the architecture"
            if converter is None:
                converter = copy.deepcopy(by_pattern[pattern])
            converter.add_tensor(renamed, key, pattern, stored[key])  # type: ignore[arg-type]
        assert converter is not None
        (made,) = converter.convert(name, config=self._config).values()
        tensor: Tensor = made[0] if isinstance(made, list) else made
        return tensor


def _places(folder: Path, names: Mapping[str, str]) -> dict[str, dict[str, Place]]:
    """Where every tensor of an architecture is: several stored ones may be put together."""
    files = weight_files(folder)
    if odd := next((path for path in files if path.suffix != ".safetensors"), None):
        raise LorapError(f"stream must be false where weights are no safetensors, got '{odd.name}'")
    found: dict[str, dict[str, Place]] = {}
    for path in files:
        for name, place in places_in(path).items():
            found.setdefault(names.get(name, name), {})[name] = place
    return found
