"""While a job works, the checkpoint of the next one is read."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from lorap_exp.commands.following import jobs_of
from lorap_exp.commands.main import main
from lorap_exp.models.ahead import read_ahead
from lorap_exp.models.tiny import byte_tokenizer
from lorap_exp.schema.inputs import ModelConfig
from tests.conftest import TINY

Tiny = Callable[..., PreTrainedModel]


def test_the_jobs_of_a_sweep_in_order() -> None:
    typed = ["--multirun", "ratio=0.2,0.5", "method=lorap", "hydra/launcher=basic"]
    expected = [["ratio=0.2", "method=lorap"], ["ratio=0.5", "method=lorap"]]
    assert jobs_of(typed, {}) == expected
    assert jobs_of(typed[:1], {"ratio": "0.2,0.5", "method": "lorap"}) == expected
    assert jobs_of(["ratio=0.3"], {"ratio": "0.2,0.5"}) == [["ratio=0.3"]]


def test_a_sweep_over_models_reads_the_next_one(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        tiny().save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    asked: list[str] = []
    monkeypatch.setattr(
        os,
        "posix_fadvise",
        lambda number, *_: asked.append(str(Path(f"/proc/self/fd/{number}").readlink())),
    )
    paths = ",".join(str(folder) for folder in folders)
    rest = [word for word in TINY if not word.startswith(("model", "evaluation"))]
    command = ["-m", "model=custom", f"model.path={paths}", "ratio=0,0.3", *rest]
    command += ["evaluation=perplexity", "evaluation.perplexity.max_tokens=256"]
    command += [f"output_root={tmp_path / 'out'}", "name=sweep"]
    monkeypatch.setattr("sys.argv", ["lorap_exp", *command])
    main()
    assert asked == [str(folders[1] / "model.safetensors")]
    assert len(list((tmp_path / "out" / "sweep").glob("*/result.json"))) == 4


def test_what_is_not_there_is_left_to_its_job(tmp_path: Path) -> None:
    model = ModelConfig(name="x", path=str(tmp_path), revision=None, random=None)
    assert read_ahead(model) == 0
