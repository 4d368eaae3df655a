"""Safetensors files read and written a few tensors at a time.

A file is 8 bytes (the header's length, little-endian), the header in JSON, and the tensors. What is
written here is byte for byte what `safetensors` writes for the same tensors.
"""

import inspect
import json
import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers import PreTrainedModel

from lorap_exp.errors import LorapError

TYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}
"""In the order of safetensors: a file holds the last kinds first."""
NAMES = {dtype: name for name, dtype in TYPES.items()}
PATTERN = "model{suffix}.safetensors"
SHARD = inspect.signature(PreTrainedModel.save_pretrained).parameters["max_shard_size"].default
"""Above it a checkpoint is several files."""


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes are."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def places_in(path: Path) -> dict[str, Place]:
    """Every tensor of a safetensors file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        found[name] = Place(path, entry["dtype"], shape, 8 + length + begin, end - begin)
    return found


def read(place: Place) -> Tensor:
    """A tensor, copied into memory."""
    raw = np.fromfile(place.file, dtype=np.uint8, count=place.size, offset=place.start)
    if len(raw) < place.size:
        raise ValueError(f"'{place.file}' ends inside a tensor")
    return _tensor(raw, place)


class Mapped:
    """A tensor whose pages are read from the file when they are used; the file is never changed."""

    def __init__(self, place: Place) -> None:
        start = place.start % mmap.ALLOCATIONGRANULARITY
        with place.file.open("rb") as file:
            self._pages = mmap.mmap(
                file.fileno(),
                start + place.size,
                access=mmap.ACCESS_COPY,
                offset=place.start - start,
            )
        raw = np.frombuffer(self._pages, np.uint8, place.size, start)
        self.tensor = _tensor(raw, place)

    def forget(self) -> None:
        """Give the pages back: they are read again when they are used, as the file has them."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED)


def _tensor(raw: Any, place: Place) -> Tensor:
    return torch.from_numpy(raw).view(TYPES[place.dtype]).reshape(place.shape)


def layout(tensors: Mapping[str, Tensor]) -> tuple[bytes, list[str]]:
    """The header of a file that holds these tensors, and their order in it."""
    kinds = {name: NAMES[tensor.dtype] for name, tensor in tensors.items()}
    ranks = {kind: rank for rank, kind in enumerate(TYPES)}
    order = sorted(tensors, key=lambda name: (-ranks[kinds[name]], name))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in order:
        kind, shape = kinds[name], list(tensors[name].shape)
        size = TYPES[kind].itemsize * int(np.prod(shape, dtype=np.int64))
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, order


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A file of tensors that are in memory."""
    header, order = layout(tensors)
    with path.open("wb") as file:
        file.write(header)
        for name in order:
            whole = tensors[name].detach().cpu().contiguous()
            file.write(whole.view(-1).view(torch.uint8).numpy().data)


def fill(
    folder: Path,
    tensors: Mapping[str, Tensor],
    parts: Iterable[Mapping[str, Tensor]],
    parameters: int,
) -> None:
    """The weight files of a checkpoint, written a part at a time.

    Args:
        folder: files are those that `save_pretrained` would write there, shards with an index where
            they are large.
        tensors: shapes and types of all, on the meta device.
        parts: each tensor once, in any order.
        parameters: of the model, for the index.

    Raises:
        LorapError: a tensor was not given, or has another size.
    """
    split = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern=PATTERN, max_shard_size=SHARD
    )
    spans: dict[str, tuple[Path, int, int]] = {}
    for name, own in split.filename_to_tensors.items():
        header, order = layout({key: tensors[key] for key in own})
        (folder / name).write_bytes(header)
        at = len(header)
        for key in order:
            size = tensors[key].numel() * tensors[key].element_size()
            spans[key] = (folder / name, at, size)
            at += size
    for part in parts:
        for key, tensor in part.items():
            path, start, size = spans.pop(key, (folder, 0, 0))
            raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
            if raw.nbytes != size:
                raise LorapError(f"'{key}' must have {size} bytes, got {raw.nbytes}")
            with path.open("r+b") as file:
                file.seek(start)
                file.write(raw)
    if spans:
        raise LorapError(f"the checkpoint lacks '{next(iter(spans))}'")
    if split.is_sharded:
        (folder / "model.safetensors").unlink(missing_ok=True)
        known = split.metadata | {"total_parameters": parameters}
        index = {"metadata": known, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
