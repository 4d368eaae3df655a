"""The command line as a user meets it: one sentence, a non-zero exit, no weight read."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lorap_exp.commands.catalogue import conf_folder
from lorap_exp.commands.info import describe
from lorap_exp.errors import LorapError

QUIET = ["model=tiny", "data=embedded", "calibration=embedded", "logging=disabled"]


def options(group: str) -> str:
    """The options of a group as a message lists them."""
    return ", ".join(sorted(path.stem for path in (conf_folder() / group).glob("*.yaml")))


def lorap(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lorap_exp", f"output_root={folder}", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_is_a_catalogue() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "lorap_exp", "--help"], capture_output=True, text=True, check=True
    )
    for word in ("ratio", "method=", "lorap", "quickstart", "lorap_exp report"):
        assert word in run.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=foo"], f"error: method must be one of {options('method')}, got"),
        (["rato=0.2"], "error: 'rato' is not a setting; did you mean ratio?"),
        (["ratio=1.2"], "error: ratio must lie in [0, 1), got 1.2"),
        (
            ["evaluation=null"],
            f"error: evaluation must be one of {options('evaluation')}, got",
        ),
        (["device=cuda:9"], "error: device must be auto, cpu or one of the"),
        (
            ["model=custom", "model.path=./nowhere"],
            "error: model.path must be a hub id or a folder with config.json, got './nowhere'",
        ),
        (
            ["method.stages.attention.metrc=svd"],
            "did you mean method.stages.attention.metric?",
        ),
    ],
)
def test_bad_input(tmp_path: Path, arguments: list[str], message: str) -> None:
    given = {argument.split("=")[0] for argument in arguments}
    quiet = [word for word in QUIET if word.split("=")[0] not in given]
    run = lorap(tmp_path, *quiet, *arguments)
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 1
    assert message in last
    assert "Traceback" not in run.stderr


def test_a_bad_job_of_a_sweep_does_not_stop_the_others(tmp_path: Path) -> None:
    small = ["evaluation=perplexity", "evaluation.perplexity.max_tokens=256"]
    few = ["calibration.samples=4", "calibration.length=16", "dtype=float32"]
    run = lorap(tmp_path, "-m", "ratio=0.2,1.2,0.4", "name=mixed", *QUIET, *small, *few)
    assert run.returncode == 1
    sweep = tmp_path / "mixed"
    assert len(list(sweep.glob("*/result.json"))) == 2
    command = next(sweep.glob("*ratio=0.4*/command.txt")).read_text()
    alone = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]], capture_output=True, text=True, check=True
    )
    assert "ratio=0.4: finished before, skipped" in alone.stderr
    assert re.search(r"^tiny +lorap +0\.400 ", run.stdout, re.M), "a sweep ends in its table"
    assert "ratio must lie in [0, 1), got 1.2" in run.stdout
    report = subprocess.run(
        [sys.executable, "-m", "lorap_exp", "report", str(sweep)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "failed" in report
    assert "ratio must lie in [0, 1), got 1.2" in report
    assert "not comparable with the literature" in report
    assert (sweep / "report.csv").is_file() and (sweep / "report.png").stat().st_size > 5000


def test_info_and_report_name_a_wrong_folder(tmp_path: Path) -> None:
    for command in ("info", "report"):
        run = subprocess.run(
            [sys.executable, "-m", "lorap_exp", command, str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 1
        assert run.stderr.startswith("error: ") and str(tmp_path) in run.stderr


def test_info_names_a_job_of_a_sweep(tmp_path: Path) -> None:
    for name in ("b=2", "a=1"):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "config.json").write_text("{}")
    with pytest.raises(LorapError, match="a sweep; its first job with a model is '.*a=1'"):
        describe(tmp_path)
