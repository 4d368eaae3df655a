"""Any damaged file of a job: its step is done again with a warning, the result is the same."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lorap_exp import pipeline
from lorap_exp.commands.report import show
from lorap_exp.config import Config
from lorap_exp.reporting.result import Result

Make = Callable[..., Config]
SMALL = ["evaluation.perplexity.max_tokens=256", "evaluation.zero_shot.tasks=[piqa]"]
RECOVERED = [
    "method=lorap_lora",
    "method.stages.recovery.text=embedded",
    "method.stages.recovery.samples=8",
    "method.stages.recovery.validation_samples=2",
    "method.stages.recovery.cutoff=16",
    "method.stages.recovery.max_steps=2",
    "method.stages.recovery.warmup_steps=0",
    "method.stages.recovery.batch_size=2",
    "method.stages.recovery.micro_batch=2",
]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """One bit, where a number may be: the file stays readable."""
    raw = bytearray(path.read_bytes())
    at = next((i for i in range(len(raw) // 2, len(raw)) if chr(raw[i]).isdigit()), len(raw) // 2)
    raw[at] ^= 1
    path.write_bytes(raw)


def content(text: str | bytes) -> Callable[[Path], object]:
    raw = text if isinstance(text, bytes) else text.encode()
    return lambda path: path.write_bytes(raw)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "flip": flip,
    "empty": content(""),
    "gone": Path.unlink,
    "not UTF-8": content(b"\xff\xfe\x00"),
    "list": content("[]"),
    "object": content("{}"),
    "null": content("null"),
    "word": content('"x"'),
    "nested": content("[" * 100_000),
}
JSON = ["group_0.json", "scores/piqa.json", "scores/lorap-ptb.json", "choices/piqa.json"]
REPORTED = ["result.json", "config.json", "status.json"]
OTHERS = ["config.json", "status.json", "inputs.json", "plan.json", "model_digest.json"]
MODEL = ["model/model.safetensors", "model/config.json", "model/tokenizer.json"]
TRAINING = ["state.safetensors", "best.safetensors"]


def pairs(names: Sequence[str], damages: Sequence[str] = tuple(DAMAGES)) -> list[Any]:
    """Every damage to every file; all but one a file, each time another, are slow."""
    found = []
    for place, name in enumerate(names):
        for damage in damages:
            quick = damage == damages[place % len(damages)]
            marks = () if quick else pytest.mark.slow
            found.append(pytest.param(name, damage, marks=marks, id=f"{name}-{damage}"))
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job with its store, made once."""
    return tmp_path_factory.mktemp("damage")


def job(root: Path, make: Make, *overrides: str) -> tuple[Config, Result]:
    cfg = make(*SMALL, f"store.folder={root}/store", *overrides)
    return cfg, pipeline.run(cfg, root / "sweep" / "job")


def numbers(result: Result) -> list[float]:
    scores = result.scores
    return [p.nll for p in scores.perplexity] + [t.value for t in scores.tasks] + [result.kept]


@pytest.fixture
def copy(finished: Path, config: Make, tmp_path: Path) -> tuple[Path, Config, list[float]]:
    """A copy of the finished job, its configuration and its numbers."""
    cfg, result = job(finished, config)
    root = tmp_path / "copy"
    shutil.copytree(finished, root)
    moved = config(*SMALL, f"store.folder={root}/store")
    assert moved.model == cfg.model
    return root / "sweep" / "job", moved, numbers(result)


@pytest.mark.parametrize(("name", "damage"), pairs([*JSON, *OTHERS, *MODEL]))
def test_a_cut_job_with_a_damaged_file_goes_on(
    copy: tuple[Path, Config, list[float]],
    name: str,
    damage: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, cfg, expected = copy
    (folder / "result.json").unlink()
    DAMAGES[damage](folder / name)
    capsys.readouterr()
    assert numbers(pipeline.run(cfg, folder)) == expected
    if damage != "gone" and name in (*JSON[:3], *MODEL):
        assert "warning: " in capsys.readouterr().err


@pytest.mark.parametrize(("name", "damage"), pairs(["result.json", *MODEL]))
def test_a_finished_job_that_is_damaged_is_not_finished(
    copy: tuple[Path, Config, list[float]],
    name: str,
    damage: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, cfg, expected = copy
    before = (folder / "model" / "model.safetensors").read_bytes()
    DAMAGES[damage](folder / name)
    capsys.readouterr()
    assert numbers(pipeline.run(cfg, folder)) == expected
    assert "finished before" not in capsys.readouterr().err
    assert (folder / "model" / "model.safetensors").read_bytes() == before
    pipeline.run(cfg, folder)
    assert "finished before" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "damage"),
    pairs([f"job/{file}" for file in (*REPORTED, "command.txt")] + ["multirun.yaml"]),
)
def test_a_report_over_a_damaged_file(
    copy: tuple[Path, Config, list[float]], name: str, damage: str
) -> None:
    folder, _, _ = copy
    sweep = folder.parent
    shutil.copytree(folder, sweep / "sound")
    for path in (folder / "command.txt", sweep / "multirun.yaml"):
        path.write_text("hydra: {overrides: {task: [seed=1]}}\n")
    DAMAGES[damage](sweep / name)
    assert "tiny" in show([sweep])
    assert (sweep / "report.html").stat().st_size > 10_000


def test_texts_that_changed_are_scored_anew(
    copy: tuple[Path, Config, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorap_exp.data import embedded

    folder, cfg, expected = copy
    (folder / "result.json").unlink()
    real = embedded.part
    monkeypatch.setattr(embedded, "part", lambda index, of=3: real(index, of)[::-1])
    result = pipeline.run(cfg, folder)
    assert numbers(result) != expected
    again = pipeline.run(cfg, folder.parent / "fresh")
    assert [p.sha256 for p in result.scores.perplexity] == [
        p.sha256 for p in again.scores.perplexity
    ]
    assert numbers(result) == numbers(again)


def test_weights_of_the_source_that_changed(tmp_path: Path, config: Make) -> None:
    from tests.models.test_folders import Q, build, changed

    build(tmp_path / "dense")
    place = ["model=custom", f"model.path={tmp_path}/dense", f"store.folder={tmp_path}/store"]
    cfg = config(*SMALL, *place)
    first = pipeline.run(cfg, tmp_path / "job")
    (tmp_path / "job" / "result.json").unlink()
    changed(Q, lambda x: x * 3)(tmp_path / "dense")
    second = pipeline.run(cfg, tmp_path / "job")
    assert numbers(second) != numbers(first)
    assert numbers(second) == numbers(pipeline.run(cfg, tmp_path / "fresh"))


@pytest.mark.parametrize(
    ("name", "damage"), pairs(TRAINING, ["cut", "gone", "empty", "not UTF-8", "object"])
)
def test_a_damaged_training_state(
    tmp_path: Path, config: Make, name: str, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(*SMALL, *RECOVERED, f"store.folder={tmp_path}/store")
    expected = numbers(pipeline.run(cfg, tmp_path / "whole"))

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lorap_exp.steps.compress.Work.save", _second_time(stop))
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(cfg, tmp_path / "job")
    assert {path.name for path in (tmp_path / "job" / "training").iterdir()} == set(TRAINING)
    DAMAGES[damage](tmp_path / "job" / "training" / name)
    assert numbers(pipeline.run(cfg, tmp_path / "job")) == expected


def _second_time(act: Callable[..., Any]) -> Callable[..., Any]:
    from lorap_exp.steps.compress import Work

    save = Work.save
    calls: list[int] = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return act() if len(calls) > 1 else save(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("name", ["group_1.json", "group_0.json", "model/model.safetensors"])
def test_a_damaged_recovery(tmp_path: Path, config: Make, name: str) -> None:
    cfg = config(*SMALL, *RECOVERED, f"store.folder={tmp_path}/store")
    expected = numbers(pipeline.run(cfg, tmp_path / "job"))
    (tmp_path / "job" / "result.json").unlink()
    cut(tmp_path / "job" / name)
    assert numbers(pipeline.run(cfg, tmp_path / "job")) == expected


def test_sealed_files_hold_their_digest(copy: tuple[Path, Config, list[float]]) -> None:
    folder, _, _ = copy
    for name in ("result.json", *JSON):
        assert len(json.loads((folder / name).read_text())["digest"]) == 64
