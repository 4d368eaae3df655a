"""Saved models as inputs of other jobs, and what becomes of jobs whose model changes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lorap_exp import pipeline
from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.reporting.result import Result

Make = Callable[..., Config]
SMALL = ["evaluation.perplexity.max_tokens=256", "evaluation.zero_shot.tasks=[piqa]"]


def scored(result: Result) -> list[float]:
    return [p.nll for p in result.scores.perplexity] + [t.value for t in result.scores.tasks]


@pytest.mark.parametrize("method", ["lorap", "pruned", "streamline_none"])
def test_a_saved_model_is_scored_again(tmp_path: Path, config: Make, method: str) -> None:
    """Factored, stock and short ones give the scores of the job that made them."""
    first = pipeline.run(config(*SMALL, f"method={method}", "ratio=0.3"), tmp_path / "a=1")
    model = ["model=custom", f"model.path='{tmp_path}/a=1/model'"]
    again = pipeline.run(config(*SMALL, *model, "method=dense"), tmp_path / "again")
    assert scored(again) == scored(first)
    assert again.parameters["compressed"] == first.parameters["compressed"]
    assert again.kept == 1, "a share of the model that came in"


def test_a_factored_model_is_not_compressed_again(tmp_path: Path, config: Make) -> None:
    pipeline.run(config(*SMALL), tmp_path / "first")
    model = ["model=custom", f"model.path={tmp_path}/first/model"]
    with pytest.raises(LorapError, match="must hold a dense model .* method=dense scores it"):
        pipeline.run(config(*SMALL, *model), tmp_path / "again")


def test_a_finished_job_whose_model_changed_is_done_again(
    tmp_path: Path, config: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same sizes and names: only the digests differ."""
    pipeline.run(config(*SMALL, "method=dense"), tmp_path / "source")
    model = tmp_path / "source" / "model"
    cfg = config(*SMALL, "model=custom", f"model.path={model}")
    before = pipeline.run(cfg, tmp_path / "job")
    assert pipeline.run(cfg, tmp_path / "job") == before
    tensors = load_file(model / "model.safetensors")
    save_file(
        {k: v * 1.1 for k, v in tensors.items()}, model / "model.safetensors", {"format": "pt"}
    )
    capsys.readouterr()
    after = pipeline.run(cfg, tmp_path / "job")
    assert "model changed since" in capsys.readouterr().err
    assert scored(after) != scored(before)


@pytest.mark.parametrize("changed", ["calibration", "tokenizer"])
def test_a_finished_job_whose_files_changed_is_done_again(
    tmp_path: Path, config: Make, changed: str
) -> None:
    text = tmp_path / "a.txt"
    text.write_text("The quick brown fox jumps over the lazy dog again and again. " * 40)
    pipeline.run(config(*SMALL, "method=dense"), tmp_path / "source")
    model = tmp_path / "source" / "model"
    given = [
        "model=custom",
        f"model.path={model}",
        "calibration=text",
        "calibration.separator=file",
    ]
    cfg = config(*SMALL, *given, f"calibration.files=[{text}]")
    before = pipeline.run(cfg, tmp_path / "job")
    path = text if changed == "calibration" else model / "tokenizer.json"
    content = path.read_text()
    path.write_text(
        content.replace("quick", "brisk") if changed == "calibration" else content + " "
    )
    if changed == "tokenizer":
        raw = json.loads(content)
        a, b = list(raw["model"]["vocab"])[10:12]
        vocab = raw["model"]["vocab"]
        vocab[a], vocab[b] = vocab[b], vocab[a]
        path.write_text(json.dumps(raw))
    after = pipeline.run(cfg, tmp_path / "job")
    assert after.calibration["sha256"] != before.calibration["sha256"] or scored(after) != scored(
        before
    )


@pytest.mark.parametrize("setting", [{"repetition_penalty": 5.0}, {"no_repeat_ngram_size": 1}])
def test_measured_generation_depends_on_weights_alone(
    tmp_path: Path, config: Make, setting: dict[str, float]
) -> None:
    """What generation_config.json suggests to users changes no score."""
    asked = ["evaluation=streamline", "evaluation.generation.samples=4", "method=dense"]
    asked += ["evaluation.generation.words=12", *SMALL]
    pipeline.run(config(*SMALL, "method=dense"), tmp_path / "source")
    model = tmp_path / "source" / "model"
    given = ["model=custom", f"model.path={model}"]
    plain = pipeline.run(config(*asked, *given, f"store.folder={tmp_path}/a"), tmp_path / "plain")
    path = model / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    other = pipeline.run(config(*asked, *given, f"store.folder={tmp_path}/b"), tmp_path / "other")
    assert plain.scores.generation is not None and other.scores.generation is not None
    assert other.scores.generation.accuracy == plain.scores.generation.accuracy
    answers = [
        json.loads((tmp_path / name / "scores" / "generation.json").read_text())
        for name in ("plain", "other")
    ]
    assert answers[0]["accuracy"] == answers[1]["accuracy"]


def test_a_fused_architecture_that_ends_stock_keeps_what_it_says(
    tmp_path: Path, config: Make
) -> None:
    """Phi-3 fuses q, k, v and gate, up; `kept` counts all of them."""
    asked = ["model.random.family=phi3", "method=pruned", "ratio=0.25"]
    asked += ["method.stages.attention=null", "evaluation.zero_shot=null"]
    result = pipeline.run(config(*asked, "evaluation.perplexity.max_tokens=256"), tmp_path)
    saved = json.loads((tmp_path / "model" / "config.json").read_text())
    assert saved["model_type"] == "phi3"
    stored = load_file(tmp_path / "model" / "model.safetensors")
    counted = sum(tensor.numel() for name, tensor in stored.items() if "proj" in name)
    assert result.parameters["compressed"]["decoder"] == counted
    assert result.kept == counted / sum(shape.parameters for shape in result.shapes)
    assert 0.74 < result.kept < 0.9
