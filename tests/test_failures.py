"""What can go wrong around a job: each defined, in one sentence, with nothing computed lost."""

import errno
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorap_exp import pipeline
from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.reporting.sweep import collect
from lorap_exp.workspace import files, job
from lorap_exp.workspace.job import open_job
from lorap_exp.workspace.state import describe_state, read_status

Make = Callable[..., Config]
QUIET = ["model=tiny", "data=embedded", "calibration=embedded", "logging=disabled"]
SMALL = ["evaluation=perplexity", "evaluation.perplexity.max_tokens=256", "dtype=float32"]
FEW = ["calibration.samples=4", "calibration.length=16"]


def lorap(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lorap_exp", f"output_root={folder}", *QUIET, *SMALL, *FEW]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


def test_a_killed_job_is_told_from_a_running_one(tmp_path: Path, config: Make) -> None:
    with open_job(tmp_path, config()):
        (tmp_path / "status.json").write_text('{"state": "running"}')
        status = read_status(tmp_path)
        assert status is not None and status["state"] == "running"
    (tmp_path / "status.json").write_text('{"state": "running"}')
    status = read_status(tmp_path)
    assert status is not None and status["state"] == "cut"
    sweep = collect(tmp_path)
    assert "killed" in next(iter(sweep.reasons.values()))


def test_a_dry_run_tells_the_state_and_changes_nothing(tmp_path: Path) -> None:
    sweep = ("-m", "name=s", "ratio=0.2,1.3,0.4")
    before = lorap(tmp_path, *sweep, "--dry-run")
    assert before.returncode == 0
    assert before.stdout.count("would run") == 2
    assert "wrong: ratio must lie in [0, 1), got 1.3" in before.stdout
    assert not list(tmp_path.iterdir())
    lorap(tmp_path, *sweep)
    after = lorap(tmp_path, *sweep, "--dry-run")
    assert after.stdout.count(": done") == 2
    assert "wrong: ratio must lie" in after.stdout
    same = lorap(tmp_path, "name=s", "ratio=0.2", "seed=0", "keep_model=false", "--dry-run")
    assert ": done as " in same.stdout
    search = lorap(tmp_path, "experiment=search/allocation", "--dry-run")
    assert search.returncode == 1 and "a search chooses them as it goes" in search.stderr


def test_the_state_names_what_is_kept(
    tmp_path: Path, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(pipeline, "score", stop)
    with pytest.raises(MemoryError):
        pipeline.run(config(), tmp_path)
    state = describe_state(tmp_path, config())
    assert state == "failed: MemoryError: no room; kept: group_0"
    assert describe_state(tmp_path, config("ratio=0.3")).startswith("refused: output folder")
    raw = json.loads((tmp_path / "status.json").read_text())
    assert "stop" in raw["traceback"]
    assert json.loads((tmp_path / "config.json").read_text())["ratio"] == 0.2


def test_a_full_disk_loses_nothing(
    tmp_path: Path, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.write_json

    def full(path: Path, value: Any) -> None:
        if path.parent.name == "scores" or dict(value).get("state") == "failed":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(job, "write_json", full)
        with pytest.raises(OSError, match="No space left"):
            pipeline.run(config(), tmp_path)
    monkeypatch.setattr("lorap_exp.steps.compress.load_model", None)
    assert pipeline.run(config(), tmp_path).scores.tasks


def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = lorap(tmp_path / "file", "name=x")
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "file" in run.stderr and "Traceback" not in run.stderr


def test_wandb_out_of_reach_is_one_sentence(
    tmp_path: Path, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def unreachable(**_: Any) -> Any:
        raise wandb.errors.CommError("Run initialization has timed out")

    monkeypatch.setattr(wandb, "init", unreachable)
    with pytest.raises(LorapError, match="logging must not be online where W&B"):
        pipeline.run(config("logging=online"), tmp_path)
    assert pipeline.run(config("logging=disabled"), tmp_path).scores.tasks


def test_a_failing_log_leaves_the_result(
    tmp_path: Path, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorap_exp.reporting import tracking

    def fail(*_: Any) -> Any:
        raise OSError("W&B folder is gone")

    monkeypatch.setattr(tracking.Tracker, "log_result", fail)
    with pytest.raises(OSError, match="is gone"):
        pipeline.run(config(), tmp_path)
    monkeypatch.setattr(pipeline, "prepare", fail)
    assert pipeline.run(config(), tmp_path).scores.tasks


@pytest.mark.slow
def test_killed_five_times_a_sweep_ends_with_the_same_table(
    tmp_path: Path, workload: list[str]
) -> None:
    """12 jobs, dense and wrong ones among them; SIGKILL at random moments of its run time."""

    def command(folder: str) -> list[str]:
        sweep = ["-m", "name=s", "ratio=0,0.1,0.2,0.3,0.4,1.5", "method=lorap,svd", *workload]
        return [sys.executable, "-m", "lorap_exp", f"output_root={tmp_path / folder}", *sweep]

    def whole(folder: str) -> str:
        assert subprocess.run(command(folder), capture_output=True, check=False).returncode == 1
        report = [sys.executable, "-m", "lorap_exp", "report", str(tmp_path / folder / "s")]
        subprocess.run(report, check=True, capture_output=True)
        return (tmp_path / folder / "s" / "report.csv").read_text()

    def finished() -> dict[Path, int]:
        names = ("result.json", "group_*.json", "scores/*.json")
        found = [path for name in names for path in tmp_path.glob(f"cut/s/*/{name}")]
        return {path: path.stat().st_mtime_ns for path in found}

    begin = time.monotonic()
    expected = whole("unbroken")
    length = time.monotonic() - begin
    chance, done = random.Random(0), finished()
    for _ in range(5):
        process = subprocess.Popen(
            command("cut"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(chance.uniform(0.15, 0.4) * length)
        process.kill()
        process.wait()
        assert finished().items() >= done.items(), "nothing that was finished is done again"
        done = finished()
    assert whole("cut") == expected
    assert expected.count("\n") == 1 + 1 + 8 + 2, "head, dense of both methods, 8 jobs, 2 wrong"
