"""Whole jobs on the tiny model: results, resumption, refusals."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lorap_exp
from lorap_exp import pipeline
from lorap_exp.commands.main import forget_locals
from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.evaluation import suite, zero_shot
from lorap_exp.models.layout import settings_of
from lorap_exp.models.loading import load_config
from lorap_exp.planning.edits import Plan
from lorap_exp.reporting.result import read_result
from lorap_exp.steps import compress as compression
from lorap_exp.workspace.job import Job
from lorap_exp.workspace.state import find_twin

Make = Callable[..., Config]


def test_a_job_leaves_everything(tmp_path: Path, config: Make) -> None:
    cfg = config("ratio=0.4")
    result = pipeline.run(cfg, tmp_path)
    raw = json.loads((tmp_path / "result.json").read_text())
    assert read_result(tmp_path / "result.json") == result
    assert raw["config"]["ratio"] == 0.4
    assert raw["versions"]["torch"] == torch.__version__
    assert raw["calibration"]["samples"] == 8
    assert raw["comparable"] is False
    assert abs(raw["kept"] - 0.6) < 0.02
    assert {"load", "compress", "save", "perplexity", "zero-shot"} <= set(raw["seconds"])
    assert all(peak > 0 for peak in raw["peak_memory"].values())
    assert {t["task"] for t in raw["scores"]["tasks"]} == set(cfg.evaluation.zero_shot.tasks)  # type: ignore[union-attr]
    assert {"mean7_paper", "mean7_acc"} == set(raw["means"])
    model = lorap_exp.load(tmp_path / "model")
    total = sum(parameter.numel() for parameter in model.parameters())
    assert raw["parameters"]["compressed"]["total"] == total
    plan = Plan.from_dict(Job(tmp_path).read("plan.json") or {})
    assert plan == result.plan and not plan.is_dense
    settings = settings_of(plan, load_config(cfg.model))
    assert model.config.compressed_modules == settings["compressed_modules"]


@pytest.mark.parametrize("method", ["lorap", "svd", "svd_all", "dense"])
def test_every_method_runs(tmp_path: Path, config: Make, method: str) -> None:
    result = pipeline.run(config(f"method={method}", "evaluation.zero_shot=null"), tmp_path)
    assert result.kept == pytest.approx(1 if method == "dense" else 0.8, abs=0.03)


@pytest.mark.parametrize("family", ["falcon", "bloom"])
@pytest.mark.parametrize("method", ["lorap", "streamline_none", "asvd"])
def test_layers_that_return_tuples(tmp_path: Path, config: Make, family: str, method: str) -> None:
    """Three blocks: the last one's input comes from one that is replaced while it is watched."""
    asked = [f"model.random.family={family}", "model.random.blocks=3", "evaluation.zero_shot=null"]
    result = pipeline.run(config(*asked, f"method={method}", "ratio=0.34"), tmp_path)
    assert result.kept == pytest.approx(0.66, abs=0.03)


def test_the_same_command_gives_the_same_numbers(tmp_path: Path, config: Make) -> None:
    results = [pipeline.run(config(), tmp_path / name) for name in "ab"]
    assert results[0].plan == results[1].plan
    assert [p.nll for p in results[0].scores.perplexity] == [
        p.nll for p in results[1].scores.perplexity
    ]


def fail(*_: Any, **__: Any) -> Any:
    raise AssertionError("computed again")


def test_a_finished_job_is_skipped(
    tmp_path: Path, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pipeline.run(config(), tmp_path)
    monkeypatch.setattr(pipeline, "prepare", fail)
    assert pipeline.run(config(), tmp_path) == first
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "done"


def test_the_same_settings_given_otherwise_are_the_same_job(
    tmp_path: Path, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ratio=0.2` typed or left at its default: two folder names, one job."""
    first = pipeline.run(config("name=one"), tmp_path / "sweep" / "default")
    monkeypatch.setattr(pipeline, "prepare", fail)
    again = config("name=two", "keep_model=false")
    twin = find_twin(tmp_path / "sweep" / "ratio=0.2", again)
    assert twin == tmp_path / "sweep" / "default"
    assert find_twin(tmp_path / "sweep" / "ratio=0.3", config("ratio=0.3")) is None
    assert pipeline.run(again, twin) == first
    assert not (tmp_path / "sweep" / "default" / "model").exists(), "no longer wanted"


def test_a_damaged_result_is_made_anew(
    tmp_path: Path, config: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    first = pipeline.run(config(), tmp_path)
    (tmp_path / "result.json").write_text('{"config": {}}')
    (tmp_path / "scores" / "boolq.json").write_text("{")
    again = pipeline.run(config(), tmp_path)
    assert [task.acc for task in again.scores.tasks] == [task.acc for task in first.scores.tasks]
    warnings = capsys.readouterr().err
    for name in ("result.json", "boolq.json"):
        assert f"{name}' is damaged and is made anew" in warnings
    (tmp_path / "result.json").write_text('{"config": {}}')
    with pytest.raises(LorapError, match="must be a result of this version of lorap_exp, got Key"):
        read_result(tmp_path / "result.json")


def test_a_failed_job_lets_go_of_its_model(
    tmp_path: Path, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra keeps the exception of every failed job until the sweep ends."""
    models: list[Any] = []

    def explode(cfg: Any, inputs: Any, job: Any, meter: Any, model: Any) -> Any:
        models.append(weakref.ref(model))
        raise MemoryError("no room")

    monkeypatch.setattr(pipeline, "score", explode)
    try:
        pipeline.run(config(), tmp_path)
    except MemoryError as error:
        kept = error
        forget_locals(error)
    gc.collect()
    assert models[0]() is None
    assert str(kept) == "no room"


def test_a_dense_model_is_scored_once_for_all_jobs(
    tmp_path: Path, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep whose axes do not touch the dense model has many dense jobs."""
    stable = "evaluation.zero_shot.stability=true"
    dense = [config(stable, "ratio=0", f"method={name}") for name in ("lorap", "svd")]
    first = pipeline.run(dense[0], tmp_path / "first")
    other = config(stable, "ratio=0", "evaluation.zero_shot.limit=2")
    assert pipeline.run(other, tmp_path / "other").scores != first.scores
    monkeypatch.setattr(zero_shot, "evaluate_task", fail)
    monkeypatch.setattr(suite, "evaluate_perplexity", fail)
    monkeypatch.setattr(suite, "encode", fail)
    assert pipeline.run(dense[1], tmp_path / "second").scores == first.scores


def test_the_model_can_be_removed_when_the_job_is_done(tmp_path: Path, config: Make) -> None:
    first = pipeline.run(config("keep_model=false", "evaluation.zero_shot=null"), tmp_path)
    assert not (tmp_path / "model").exists()
    again = config("keep_model=false", "evaluation.zero_shot=null")
    assert pipeline.run(again, tmp_path).scores == first.scores


def test_a_model_that_was_not_kept_is_made_again(
    tmp_path: Path, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pipeline.run(config("keep_model=false"), tmp_path)
    monkeypatch.setattr(zero_shot, "evaluate_task", fail)
    monkeypatch.setattr(suite, "evaluate_perplexity", fail)
    assert pipeline.run(config(), tmp_path).scores == first.scores
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_a_cut_evaluation_goes_on(
    tmp_path: Path, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = zero_shot.evaluate_task
    done: list[str] = []

    def cut(judged: Any, task: str, **rest: Any) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(task)
        return real(judged, task, **rest)

    monkeypatch.setattr(zero_shot, "evaluate_task", cut)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(config(), tmp_path)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "interrupted"

    monkeypatch.setattr(compression, "compress", fail)
    monkeypatch.setattr(suite, "evaluate_perplexity", fail)

    def rest_only(judged: Any, task: str, **rest: Any) -> Any:
        assert task not in done
        return real(judged, task, **rest)

    monkeypatch.setattr(zero_shot, "evaluate_task", rest_only)
    result = pipeline.run(config(), tmp_path)
    assert len(result.scores.tasks) == 7


def test_killed_and_restarted(tmp_path: Path) -> None:
    """SIGKILL in the evaluation; the same command compresses nothing again."""
    command = [sys.executable, "-m", "lorap_exp", "model=tiny", "data=embedded", "dtype=float32"]
    command += ["calibration=embedded", "logging=disabled", "calibration.samples=8"]
    command += ["evaluation.perplexity.max_tokens=4096", f"output_root={tmp_path}", "name=killed"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("killed/*/scores/boolq.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    job = next(tmp_path.glob("killed/*/plan.json")).parent
    assert not (job / "result.json").exists()
    kept = {
        path: path.stat().st_mtime_ns
        for path in [*job.glob("scores/*.json"), *job.glob("model/*"), *job.glob("group_*.json")]
    }
    assert len(kept) > 5
    subprocess.run(command, check=True, capture_output=True)
    assert (job / "result.json").is_file()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path, config: Make) -> None:
    pipeline.run(config(), tmp_path)
    with pytest.raises(LorapError, match=r"calibration.seed was 0, now 1; ratio was 0.2, now 0.3"):
        pipeline.run(config("ratio=0.3", "calibration.seed=1"), tmp_path)
    assert pipeline.run(config("name=elsewhere"), tmp_path).config["ratio"] == 0.2


def test_a_folder_in_use_is_refused(tmp_path: Path, config: Make) -> None:
    from lorap_exp.workspace.job import open_job

    with open_job(tmp_path, config()), pytest.raises(LorapError, match="in use by another"):
        pipeline.run(config(), tmp_path)


def test_a_failure_leaves_its_reason(
    tmp_path: Path, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(compression, "load_model", explode)
    with pytest.raises(MemoryError):
        pipeline.run(config(), tmp_path)
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["error"] == "MemoryError: no room"
    assert "explode" in status["traceback"]


def test_no_weight_is_read_for_bad_input(
    tmp_path: Path, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "load_model", fail)
    for override, message in [
        ("calibration.samples=1000000", "calibration.samples x calibration.length"),
        ("device=cuda:7", "device must be"),
        ("ratio=0.99", "cannot be planned"),
        ("calibration=c4", "calibration.text must be embedded or local files"),
    ]:
        with pytest.raises(LorapError, match=message):
            pipeline.run(config(override), tmp_path / override)
