"""The chooser on random models: targets are met, the least damage wins, nothing is done twice."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lorap_exp
from lorap_exp import pipeline
from lorap_exp.commands.main import main
from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.evaluation.perplexity import mean_nll
from lorap_exp.methods.stack import build_stack
from lorap_exp.models.sizes import stored_bytes
from lorap_exp.planning.edits import Plan
from lorap_exp.reporting.result import Result, read_result
from lorap_exp.reporting.table import cells
from lorap_exp.steps import choose, score, trial
from lorap_exp.steps.prepare import Basis, held_out_ids, open_basis, plan_method
from lorap_exp.steps.sizing import FINE, bytes_of, coarse_plans, ratios_of
from lorap_exp.workspace.job import Job
from tests.conftest import TINY

Make = Callable[..., Config]
THREE = "choose.candidates=[lorap,slimgpt,svd]"
FAMILIES = ("llama", "opt")


@pytest.fixture
def small(config: Make) -> Make:
    """A configuration that scores perplexity alone."""
    return lambda *given: config("evaluation.zero_shot=null", "choose.held_out=4", *given)


def basis_of(cfg: Config, folder: Path) -> Basis:
    return open_basis(cfg, Job(folder), torch.device("cpu"))


def damage(cfg: Config, folder: Path, model: Path) -> float:
    """Perplexity of a saved model on the held-out windows, computed anew."""
    held = held_out_ids(cfg, basis_of(cfg, folder / "again"))
    return math.exp(mean_nll(lorap_exp.load(model), held, cfg.calibration.batch_size))


def written(folder: Path) -> Any:
    return json.loads((folder / "choice.json").read_text())


def run(cfg: Config, folder: Path) -> Result:
    result = pipeline.run(cfg, folder)
    assert read_result(folder / "result.json") == result
    assert result.choice is not None and not (folder / "trials").exists()
    return result


def planned(cfg: Config, basis: Basis, ratio: float) -> int:
    """Bytes of the plan at a ratio."""
    own = cfg.chosen(cfg.method, ratio)
    _, plan = plan_method(own, build_stack(cfg.method), basis.model_config, basis.dense)
    return bytes_of(cfg, basis, plan)


@pytest.mark.parametrize(
    ("family", "method", "share"), [("llama", "lorap", 0.6), ("opt", "svd_llm", 0.9)]
)
def test_bytes_are_met_within_one_step(
    tmp_path: Path, small: Make, family: str, method: str, share: float
) -> None:
    of = [f"model.random.family={family}", f"method={method}"]
    dense = bytes_of(small(*of), basis_of(small(*of), tmp_path), Plan(0.0))
    cfg = small(*of, f"target.bytes={int(share * dense)}")
    choice = run(cfg, tmp_path / "job").choice
    assert choice is not None and cfg.target.bytes is not None
    saved = stored_bytes(tmp_path / "job" / "model")
    assert saved == choice.trials[-1].bytes
    basis = basis_of(cfg, tmp_path)
    assert saved <= cfg.target.bytes < planned(cfg, basis, choice.ratio - 1 / FINE)


def test_a_model_that_came_out_too_large_is_made_smaller(
    tmp_path: Path, small: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where indices lie beside the weights, the saved model may have more bytes than its plan."""
    cfg = small("method=svd", "target.bytes=400000")
    monkeypatch.setattr(trial, "stored_bytes", lambda folder: stored_bytes(folder) + 9000)
    choice = run(cfg, tmp_path).choice
    assert choice is not None and len(choice.trials) > 1
    assert [t.verdict for t in choice.trials[:-1]] == ["does not meet target.bytes"] * (
        len(choice.trials) - 1
    )
    assert stored_bytes(tmp_path / "model") + 9000 <= 400000


@pytest.mark.parametrize("family", FAMILIES)
def test_perplexity_is_met_on_the_held_out_windows(
    tmp_path: Path, small: Make, family: str
) -> None:
    of = [f"model.random.family={family}", "method=svd", "seed=1"]
    limit = trial.dense_perplexity(
        small(*of), basis_of(small(*of), tmp_path), held(small(*of), tmp_path), tmp_path / "dense"
    )
    cfg = small(*of, f"target.perplexity={limit * 1.002}")
    result = run(cfg, tmp_path / "job")
    choice = result.choice
    assert choice is not None and choice.dense == pytest.approx(limit)
    measured = damage(cfg, tmp_path, tmp_path / "job" / "model")
    assert measured <= limit * 1.002
    chosen = [t for t in choice.trials if t.verdict == "chosen"]
    assert chosen[0].perplexity == pytest.approx(measured, rel=1e-5)
    above = [t for t in choice.trials if t.ratio > choice.ratio]
    assert all(t.perplexity is None or t.perplexity > limit * 1.002 for t in above)
    beyond = [r for r in coarse_plans(cfg, cfg.method, basis_of(cfg, tmp_path)) if r > choice.ratio]
    assert not beyond or min(t.ratio for t in above) == min(beyond)


def held(cfg: Config, folder: Path) -> torch.Tensor:
    return held_out_ids(cfg, basis_of(cfg, folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_candidate_with_the_least_damage_is_chosen(
    tmp_path: Path, small: Make, family: str
) -> None:
    of = f"model.random.family={family}"
    names = "lorap,svd" if family == "opt" else "lorap,slimgpt,svd"
    cfg = small(of, "method=auto", f"choose.candidates=[{names}]")
    result = run(cfg, tmp_path / "auto")
    choice = result.choice
    assert choice is not None
    found = {t["method"]: t["perplexity"] for t in written(tmp_path / "auto")["trials"]}
    assert list(found) == names.split(",")
    assert choice.method == min(found, key=lambda name: found[name])
    for name, perplexity in found.items():
        direct = pipeline.run(small(of, f"method={name}"), tmp_path / name)
        measured = damage(cfg, tmp_path, tmp_path / name / "model")
        assert measured == pytest.approx(perplexity, rel=1e-5)
        if name == choice.method:
            assert [p.nll for p in direct.scores.perplexity] == pytest.approx(
                [p.nll for p in result.scores.perplexity], rel=1e-6
            )
            assert direct.plan == result.plan
    assert result.config["method"]["name"] == "auto"
    row = cells(result)
    assert (row["method"], row["ratio"]) == (f"auto: {choice.method}", 0.2)
    assert row["kept"] == result.kept
    card = (tmp_path / "auto" / "model" / "README.md").read_text()
    assert f"compressed by {choice.method}" in card


def test_trials_on_fewer_windows_choose_for_the_whole_job(tmp_path: Path, small: Make) -> None:
    cfg = small("method=auto", THREE, "choose.samples=2")
    result = run(cfg, tmp_path / "auto")
    assert result.choice is not None and result.calibration["samples"] == 8
    assert {t.samples for t in result.choice.trials} == {2}
    direct = pipeline.run(small(f"method={result.choice.method}"), tmp_path / "direct")
    assert direct.plan == result.plan
    assert direct.calibration == result.calibration


def test_without_time_only_the_first_is_tried(tmp_path: Path, small: Make) -> None:
    result = run(small("method=auto", THREE, "choose.seconds=0"), tmp_path)
    assert result.choice is not None and result.choice.method == "lorap"
    assert [t.method for t in result.choice.trials] == ["lorap"]
    assert set(result.choice.left_out) == {"slimgpt", "svd"}
    assert "choose.seconds were used up" in result.choice.table()


def test_a_candidate_that_cannot_run_is_left_out_with_its_sentence(
    tmp_path: Path, small: Make
) -> None:
    asked = ["method=auto", "choose.candidates=[slicegpt,svd]", "model.random.family=opt"]
    result = run(small(*asked), tmp_path)
    assert result.choice is not None and result.choice.method == "svd"
    assert "root-mean-square" in result.choice.trials[0].verdict
    assert [t["method"] for t in written(tmp_path)["trials"]] == ["svd"]


def test_a_candidate_without_a_plan_is_left_out(tmp_path: Path, small: Make) -> None:
    result = run(small("method=auto", "choose.candidates=[shortgpt,svd]"), tmp_path)
    assert result.choice is not None and result.choice.method == "svd"
    assert "ratio 0.2 cannot be planned" in result.choice.left_out["shortgpt"]


def test_a_trial_that_was_measured_is_not_measured_again(
    tmp_path: Path, small: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = small("method=auto", THREE)
    real = trial.run_trial
    done: list[str] = []

    def cut(own: Config, *rest: Any) -> Any:
        if own.method.name == "svd" and "svd" not in done:
            done.append("svd")
            raise KeyboardInterrupt
        done.append(own.method.name)
        return real(own, *rest)

    monkeypatch.setattr(choose, "run_trial", cut)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(cfg, tmp_path / "cut")
    assert [t["method"] for t in written(tmp_path / "cut")["trials"]] == ["lorap", "slimgpt"]
    with monkeypatch.context() as patched:
        patched.setattr(choose, "dense_perplexity", None)
        result = run(cfg, tmp_path / "cut")
    assert done == ["lorap", "slimgpt", "svd", "svd"]
    whole = run(cfg, tmp_path / "whole")
    assert whole.choice is not None and result.choice is not None
    assert [t.perplexity for t in result.choice.trials] == [
        t.perplexity for t in whole.choice.trials
    ]
    assert result.plan == whole.plan


def test_a_choice_that_was_made_stands(
    tmp_path: Path, small: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind the choice: no trial runs again, and its model is not compressed again."""
    cfg = small("method=auto", THREE)
    real = score.score

    def cut(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "score", cut)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(cfg, tmp_path)
    before = (tmp_path / "group_0.json").stat().st_mtime_ns
    monkeypatch.setattr(pipeline, "score", real)
    monkeypatch.setattr(choose, "run_trial", None)
    run(cfg, tmp_path)
    assert (tmp_path / "group_0.json").stat().st_mtime_ns == before


def test_another_text_is_another_choice(
    tmp_path: Path, small: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{n} words of a text of {n * n} lines" * 9 for n in range(90)))
    given = ["calibration=text", f"calibration.files=[{text}]", "method=auto", THREE]
    first = run(small(*given), tmp_path / "job")
    text.write_text("\n".join(f"other {n} words, {n % 7} more of them" * 9 for n in range(90)))
    second = run(small(*given), tmp_path / "job")
    assert first.choice is not None and second.choice is not None
    assert first.choice.held_out["sha256"] != second.choice.held_out["sha256"]
    assert first.choice.trials[0].perplexity != second.choice.trials[0].perplexity
    assert "choice.json' is of other weights or texts" in capsys.readouterr().err


def test_ratios_of_whole_layers_have_a_plan_of_their_own(tmp_path: Path, small: Make) -> None:
    cfg = small("model.random.blocks=4", "method=shortgpt", "target.perplexity=1000")
    ratios = ratios_of(cfg, cfg.method, basis_of(cfg, tmp_path))
    assert len(ratios) == 3


def test_nothing_is_chosen_where_both_were_given(tmp_path: Path, small: Make) -> None:
    assert pipeline.run(small("method=svd"), tmp_path).choice is None
    assert not (tmp_path / "choice.json").exists()


def test_another_configuration_is_refused_once_trials_were_measured(
    tmp_path: Path, small: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "compress", None)
    with pytest.raises(TypeError):
        pipeline.run(small("method=auto", THREE), tmp_path)
    with pytest.raises(LorapError, match="holds another configuration's run"):
        pipeline.run(small("method=auto", THREE, "ratio=0.3"), tmp_path)


def test_a_sweep_over_ratios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*TINY, "evaluation=perplexity", "evaluation.perplexity.max_tokens=512"]
    command += ["calibration.samples=8", "calibration.length=32", "choose.held_out=4"]
    command += ["-m", "ratio=0.2,0.5", "method=auto", "choose.candidates=[lorap,svd]"]
    command += [f"output_root={tmp_path}", "name=sweep"]
    monkeypatch.setattr("sys.argv", ["lorap_exp", *command, "--dry-run"])
    main()
    said = capsys.readouterr().out
    assert said.count("would run; tries lorap, svd at ratio") == 2
    assert "on 8 windows, 4 held out, for 3600 s" in said
    monkeypatch.setattr("sys.argv", ["lorap_exp", *command])
    main()
    rows = (tmp_path / "sweep" / "report.csv").read_text().splitlines()
    assert [row.split(",")[1].split(": ")[0] for row in rows[1:]] == ["auto", "auto"]
    assert [row.split(",")[2] for row in rows[1:]] == ["0.2", "0.5"]
