"""Without lm-eval, peft and wandb everything works but what asks for them, which says so."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lorap_exp import pipeline
from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.workspace.extras import EXTRAS
from tests.conftest import TINY

MODULES = [module for module, _ in EXTRAS.values()]
SWEEP = """
import sys
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None
from lorap_exp.commands.main import main
main()
"""
ASKED = [
    (["evaluation.perplexity=null"], "lm-eval", "evaluation.zero_shot needs lm-eval: pip install"),
    (
        ["evaluation=streamline", "evaluation.zero_shot=null"],
        "lm-eval",
        r"evaluation.generation needs lm-eval: pip install 'lorap-exp\[eval\]', or evaluation=perp",
    ),
    (["logging=offline"], "wandb", r"logging.wandb=offline .*\[wandb\]', or logging=disabled"),
    (
        ["method=lorap_lora", "evaluation.zero_shot=null"],
        "peft",
        r"method.stages.recovery needs peft: pip install 'lorap-exp\[recovery\]'",
    ),
]


def test_a_sweep_without_them(tmp_path: Path) -> None:
    """Compressed, saved, scored, reported; what needs an extra fails alone, in one sentence."""
    few = ["calibration.samples=4", "calibration.length=16", "evaluation.perplexity.max_tokens=256"]
    paths = [f"store.folder={tmp_path}/store", f"output_root={tmp_path}", "name=sweep"]
    swept = ["ratio=0.4", "method=lorap,lorap_lora", "evaluation=perplexity,quick"]
    done = subprocess.run(
        [sys.executable, "-c", SWEEP, ",".join(MODULES), "-m", *TINY, *few, *paths, *swept],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (saved,) = (tmp_path / "sweep").glob("*/result.json")
    assert (saved.parent / "model" / "model.safetensors").is_file()
    assert {f"report.{end}" for end in ("md", "csv", "tex", "png", "html")} <= {
        path.name for path in (tmp_path / "sweep").iterdir()
    }
    report = (tmp_path / "sweep" / "report.md").read_text()
    states = [line.split(" | ")[-1] for line in report.splitlines() if line.startswith("| tiny")]
    assert sorted(states) == ["done |", *["failed |"] * 3]
    assert report.count("evaluation.zero_shot needs lm-eval") == 2
    assert report.count("method.stages.recovery needs peft") == 1


@pytest.mark.parametrize(("overrides", "package", "sentence"), ASKED)
def test_what_needs_one_says_so_before_any_weight_is_read(
    tmp_path: Path,
    config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    package: str,
    sentence: str,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("everything was taken to be there")

    monkeypatch.setattr(pipeline, "analyse", never)
    monkeypatch.setitem(sys.modules, EXTRAS[package][0], None)
    with pytest.raises(LorapError, match=sentence):
        pipeline.run(config("ratio=0.4", *overrides), tmp_path / "job")
