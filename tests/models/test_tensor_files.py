"""Files of tensors are byte for byte those of safetensors, without holding a model in memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from lorap_exp.errors import LorapError
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


def empty(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}


def halves(tensors: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    items = list(tensors.items())
    return [dict(items[7:]), dict(items[:7])]


def test_written_and_filled_files_are_those_of_safetensors(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    expected = (tmp_path / "theirs.safetensors").read_bytes()
    tensor_files.write(tmp_path / "ours.safetensors", tensors)
    assert (tmp_path / "ours.safetensors").read_bytes() == expected
    tensor_files.fill(tmp_path, empty(tensors), halves(tensors), 0)
    assert (tmp_path / "model.safetensors").read_bytes() == expected


def test_large_checkpoints_are_the_shards_of_transformers(
    tiny: Callable[..., PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folders = tiny(blocks=3), [tmp_path / "theirs", tmp_path / "ours"]
    folders[1].mkdir()
    model.save_pretrained(folders[0], max_shard_size="60KB")
    monkeypatch.setattr(tensor_files, "SHARD", "60KB")
    state = dict(model.state_dict())
    tensor_files.fill(folders[1], empty(state), halves(state), model.num_parameters())
    theirs, ours = ({path.name: path.read_bytes() for path in f.glob("model*")} for f in folders)
    assert len(theirs) > 2
    assert ours == theirs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.0.w": torch.zeros(3, 2, dtype=torch.bfloat16)}, "'layers.0.w' must have 6 bytes"),
        ({"layers.9.w": torch.zeros(1)}, "'layers.9.w' must have"),
        (None, "lacks .layers.0.w."),
    ],
)
def test_a_tensor_too_few_or_of_another_size_is_noticed(
    tensors: dict[str, torch.Tensor],
    tmp_path: Path,
    change: dict[str, torch.Tensor] | None,
    message: str,
) -> None:
    given = tensors | change if change else {k: v for k, v in tensors.items() if k != "layers.0.w"}
    with pytest.raises(LorapError, match=message):
        tensor_files.fill(tmp_path, empty(tensors), [given], 0)


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
        held = tensor_files.Mapped(place)
        assert held.tensor.dtype == tensors[name].dtype
        assert torch.equal(held.tensor, tensors[name])
        held.tensor.zero_()
        held.forget()
        assert torch.equal(held.tensor, tensors[name])
    assert path.read_bytes() == before


def test_a_cut_file_is_noticed(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensor_files.write(path, tensors)
    places = tensor_files.places_in(path)
    last = max(places.values(), key=lambda place: place.start)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="ends inside"):
        tensor_files.read(last)
