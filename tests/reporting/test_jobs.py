"""Several sweeps in one report."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from lorap_exp.commands import subcommands
from lorap_exp.commands.report import show
from lorap_exp.errors import LorapError
from lorap_exp.reporting.jobs import find_jobs
from lorap_exp.reporting.result import Result
from lorap_exp.reporting.sweep import collect, write_report
from tests.reporting.conftest import write_job

Make = Callable[..., Result]


def test_one_report_over_several_sweeps(sweep: Path, tmp_path: Path, make: Make) -> None:
    other = tmp_path / "other"
    write_job(other / "method=pruned", make("pruned", 0.2))
    text = show([sweep, other])
    assert text.startswith("a_sweep + other\n") and f"report in {sweep}: " in text
    assert len(pd.read_csv(sweep / "report.csv")) == 8
    assert not list(other.glob("report.*"))
    names = [job.name for job in collect(sweep, other).jobs]
    assert "other/method=pruned" in names and "a_sweep/ratio=0" in names


def test_the_command_writes_where_it_is_told(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subcommands.run(["report", str(sweep), "--output", str(tmp_path / "new" / "place")])
    written = {path.suffix for path in (tmp_path / "new" / "place").iterdir()}
    assert written == {".md", ".csv", ".png", ".tex", ".html"}
    assert "report.html" in capsys.readouterr().out
    assert not list(sweep.glob("report.*"))


def test_the_same_settings_in_two_sweeps_stay_two_rows(tmp_path: Path, make: Make) -> None:
    for name, perplexity in (("first", 20.0), ("second", 30.0)):
        write_job(tmp_path / name / "dense", make("dense", 0.0))
        write_job(tmp_path / name / "job", make(perplexity=perplexity))
    write_report(collect(tmp_path / "first", tmp_path / "second"))
    table = pd.read_csv(tmp_path / "first" / "report.csv")
    assert table["sweep"].tolist() == ["-", "first", "second"]


def test_a_job_is_counted_once_and_folders_of_one_name_are_told_apart(
    tmp_path: Path, make: Make
) -> None:
    for place in ("a/run", "b/run"):
        write_job(tmp_path / place / "job", make())
    jobs = find_jobs([tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path])
    assert [job.sweep for job in jobs] == [str(tmp_path / "a/run"), str(tmp_path / "b/run")]


def test_models_whose_folders_share_a_name_are_rows_of_their_own(
    tmp_path: Path, make: Make
) -> None:
    """A base and its fine-tune, both called `final`: neither's numbers compete with the other's."""
    for place, perplexity in (("base", 20.0), ("tuned", 10.0)):
        model = {"name": "final", "path": f"models/{place}/final", "revision": None}
        write_job(tmp_path / "run" / f"{place}0", make("dense", 0.0, model=model))
        for method, more in (("lorap", 1.0), ("svd", 2.0)):
            found = make(method, 0.2, perplexity + more, model=model)
            write_job(tmp_path / "run" / f"{place}-{method}", found)
    sweep = collect(tmp_path / "run")
    write_report(sweep)
    table = pd.read_csv(tmp_path / "run" / "report.csv")
    assert set(table["model"]) == {"base/final", "tuned/final"} and len(table) == 6
    text = (tmp_path / "run" / "report.md").read_text()
    assert "**21.00**" in text and "**11.00**" in text, "the best of each model"
    assert "**22.00**" not in text and "**12.00**" not in text


def test_every_folder_must_hold_a_job(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(LorapError, match="empty"):
        collect(sweep, tmp_path / "empty")
