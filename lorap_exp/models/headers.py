"""What the weight files of a folder hold, from their headers: names, types, sizes; no weight.

A safetensors file is 8 bytes (the header's length, little-endian), the header in JSON, and the
tensors; the header says where each begins and ends, so a cut file is known by the tensor it lacks.
"""

import json
import math
import pickle
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorap_exp.errors import LorapError, first_line, shown

BITS = {"F64": 64, "F32": 32, "BF16": 16, "F16": 16, "I64": 64, "I32": 32, "I16": 16}
FLOATS = ("F64", "F32", "BF16", "F16")
"""Types that a weight may have: with others a model is quantised."""
POINTER = b"version https://git-lfs"
LONGEST = 100 * 2**20
"""Bytes that a header may have, as in safetensors."""


@dataclass(frozen=True)
class Stored:
    """A tensor of a file: its type as safetensors names it, and its shape."""

    file: str
    dtype: str
    shape: tuple[int, ...]


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, as transformers chooses them.

    Raises:
        LorapError: there are none, or an index names one that is not there.
    """
    for single, index in (
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return _shards(folder, index)
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
    raise LorapError(
        f"model.path must hold its weights in model.safetensors, in shards that "
        f"model.safetensors.index.json lists, or in pytorch_model.bin, got '{folder}' with "
        f"{found or 'nothing'}"
    )


def weight_bytes(folder: Path) -> int:
    """Bytes of a folder's weight files."""
    return sum(path.stat().st_size for path in weight_files(folder))


def _shards(folder: Path, index: str) -> list[Path]:
    listed = read_json(folder / index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise LorapError(f"model.path: '{folder / index}' must have a weight_map of tensors")
    if odd := [name for name in listed.values() if not isinstance(name, str)]:
        raise LorapError(
            f"model.path: '{folder / index}' must name files by text, got {shown(odd[0])}"
        )
    names = sorted(set(listed.values()))
    if index in names:
        raise LorapError(f"model.path: '{folder / index}' must name weight files, got itself")
    for name in names:
        if Path(name).name != name:
            raise LorapError(
                f"model.path: '{folder / index}' must name files of its own folder, got '{name}'"
            )
        if not (folder / name).is_file():
            lost = next(tensor for tensor, file in listed.items() if file == name)
            raise LorapError(
                f"model.path: '{folder / name}' is not there, but '{index}' says that it holds "
                f"'{lost}'"
            )
    return [folder / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model's folder.

    Raises:
        LorapError: the file is a Git LFS pointer, not UTF-8, not JSON, or not an object.
    """
    refuse_pointer(path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LorapError(f"model.path: '{path}' must be JSON, got: {first_line(error)}") from error
    if not isinstance(raw, dict):
        raise LorapError(f"model.path: '{path}' must be a JSON object, got {type(raw).__name__}")
    return raw


def refuse_pointer(path: Path) -> None:
    """Raise where a file only says which file Git LFS would put in its place."""
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise LorapError(
                f"model.path: '{path}' is a Git LFS pointer, not the file itself: fetch it with "
                f"'git lfs pull'"
            )


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder's weight files.

    Raises:
        LorapError: a file is damaged, or two hold one tensor.
    """
    found: dict[str, Stored] = {}
    for path in weight_files(folder):
        refuse_pointer(path)
        tensors = read_header(path) if path.suffix == ".safetensors" else _read_pickle(path)
        for name, tensor in tensors.items():
            if name in found:
                raise LorapError(
                    f"model.path: '{name}' must be in one file, got '{path}' and "
                    f"'{found[name].file}'"
                )
            found[name] = tensor
    return found


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file.

    Raises:
        LorapError: the header cannot be read, or the file does not hold what it says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(LONGEST, size - 8):
            raise LorapError(
                f"model.path: '{path}' must be a whole safetensors file, got {size:,} bytes that "
                f"end inside its header"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw.decode())
        header.pop("__metadata__", None)
        return _checked(path, header, size - 8 - length)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise LorapError(
            f"model.path: '{path}' must be a safetensors file, but its header cannot be read: "
            f"{first_line(error)}"
        ) from error


def _checked(path: Path, header: dict[str, Any], size: int) -> dict[str, Stored]:
    found, last = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
        if end > size:
            raise LorapError(
                f"model.path: '{path}' is cut: '{name}' should end at byte {end:,} of its "
                f"tensors, and there are {size:,}"
            )
        bits = BITS.get(entry["dtype"])
        fits = bits is None or (end - begin) * 8 == math.prod(shape) * bits
        if begin != last or not fits:
            raise LorapError(
                f"model.path: the header of '{path}' contradicts itself about '{name}': shape "
                f"{list(shape)} of {entry['dtype']} in bytes {begin:,} to {end:,}"
            )
        found[name], last = Stored(path.name, entry["dtype"], shape), end
    if last != size:
        raise LorapError(
            f"model.path: '{path}' has {size - last:,} bytes after its last tensor that its header "
            f"says nothing of"
        )
    return found


def _read_pickle(path: Path) -> dict[str, Stored]:
    """The tensors of a `.bin`; nothing of it is executed."""
    names = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16"}
    names |= {torch.float16: "F16", torch.int64: "I64", torch.int32: "I32", torch.int16: "I16"}
    try:
        with warnings.catch_warnings(action="ignore"):
            mapped = zipfile.is_zipfile(path)
            raw = torch.load(path, map_location="meta", weights_only=True, mmap=mapped)
        return {
            str(name): Stored(path.name, names.get(t.dtype, str(t.dtype)), tuple(t.shape))
            for name, t in raw.items()
        }
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        pickle.UnpicklingError,
    ) as error:
        raise LorapError(
            f"model.path: '{path}' must be tensors by name as torch.save writes them, and whole: "
            f"{first_line(error)}"
        ) from error
