"""Files of tensors are byte for byte those of safetensors, without holding a model in memory."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorap_exp.models import tensor_files


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    kinds = {"w": torch.bfloat16, "b": torch.float32, "kept": torch.int64, "half": torch.float16}
    return {
        f"layers.{i}.{name}": (10 * torch.randn(3, i + 1)).to(dtype)
        for i in (0, 1, 10, 2)
        for name, dtype in kinds.items()
    }


def test_written_and_gathered_files_are_those_of_safetensors(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    expected = (tmp_path / "theirs.safetensors").read_bytes()
    tensor_files.write(tmp_path / "ours.safetensors", tensors)
    assert (tmp_path / "ours.safetensors").read_bytes() == expected
    halves = [dict(list(tensors.items())[:7]), dict(list(tensors.items())[7:])]
    for number, half in enumerate(halves):
        tensor_files.write(tmp_path / f"{number}.safetensors", half)
    places = tensor_files.merged([tmp_path / "0.safetensors", tmp_path / "1.safetensors"])
    copied: list[int] = []
    tensor_files.gather(tmp_path / "both.safetensors", places, copied.append)
    assert (tmp_path / "both.safetensors").read_bytes() == expected
    assert sum(copied) == sum(t.nbytes for t in tensors.values())


def test_tensors_are_read_as_safetensors_reads_them(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    places = tensor_files.places_in(path)
    for name, expected in load_file(path).items():
        assert torch.equal(tensor_files.read(places[name]), expected)


def test_a_mapped_tensor_leaves_its_file_as_it_is(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "whole.safetensors"
    save_file(tensors, path)
    before = path.read_bytes()
    for name, place in tensor_files.places_in(path).items():
        found = tensor_files.mapped(place)
        assert found.dtype == tensors[name].dtype and torch.equal(found, tensors[name])
        found.zero_()
    assert path.read_bytes() == before


def test_a_cut_file_is_noticed(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensor_files.write(path, tensors)
    places = tensor_files.places_in(path)
    last = max(places.values(), key=lambda place: place.start)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="ends inside"):
        tensor_files.read(last)
    with pytest.raises(ValueError, match="ends inside"):
        tensor_files.gather(tmp_path / "b.safetensors", places, lambda _: None)
