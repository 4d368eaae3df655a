from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lorap_exp.reporting.choice import Choice, Trial
from lorap_exp.reporting.jobs import find_jobs
from lorap_exp.reporting.labels import job_labels, word
from lorap_exp.reporting.result import Result
from lorap_exp.reporting.sweep import collect
from tests.reporting.conftest import write_job


def test_the_telling_word() -> None:
    assert [word(n) for n in ("ratio", "a.b.metric", "calibration.name")] == [
        "ratio",
        "metric",
        "calibration",
    ]


def test_labels_say_what_differs(tmp_path: Path, make: Callable[..., Result]) -> None:
    for number, seed in enumerate((0, 1)):
        text = {"calibration": {"name": "c4"}}
        write_job(tmp_path / f"a{number}", make(seed=seed, **text))
        text = {"calibration": {"name": "ptb"}}
        write_job(tmp_path / f"b{number}", make(seed=seed, **text))
    labels = job_labels(find_jobs([tmp_path]))
    assert labels["a1"] == "lorap, calibration c4, seed 1"
    assert labels["b0"] == "lorap, calibration ptb, seed 0"


def test_equal_jobs_keep_their_names(tmp_path: Path, make: Callable[..., Result]) -> None:
    for name in ("one", "two"):
        write_job(tmp_path / name, make())
    assert job_labels(find_jobs([tmp_path])) == {"one": "one", "two": "two"}


def test_a_chosen_method_is_named_with_the_ratio_that_was_found(
    tmp_path: Path, make: Callable[..., Result]
) -> None:
    trials = (Trial("svd", 0.31, 8, 0.69, 1000, 20.0, 1.0, "chosen"),)
    choice = Choice("auto", "svd", 0.31, "because", 10.0, {"samples": 4}, trials, {"uidl": "no"})
    found = replace(make(method="auto", target={"bytes": 1000}), choice=choice)
    write_job(tmp_path / "a", replace(found, config=found.config | {"ratio": None}))
    write_job(tmp_path / "b", make())
    assert job_labels(find_jobs([tmp_path])) == {
        "a": "auto: svd, ratio 0.31",
        "b": "lorap, ratio 0.2",
    }
    table = collect(tmp_path).table().set_index("method")
    assert table.loc["auto: svd", "ratio"] == 0.31
    assert [line.split()[0] for line in choice.table().splitlines()] == ["candidate", "svd", "uidl"]
