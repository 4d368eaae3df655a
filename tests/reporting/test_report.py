import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from lorap_exp import pipeline
from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.reporting.result import Result
from lorap_exp.reporting.retained import retained
from lorap_exp.reporting.sweep import collect, overview, write_report
from lorap_exp.reporting.table import distinctions, frame
from lorap_exp.reporting.text import columns_within, markdown, shown
from lorap_exp.workspace.files import write_json

Make = Callable[..., Config]


def test_a_sweep_with_failed_and_missing_jobs(tmp_path: Path, config: Make) -> None:
    for ratio in (0.0, 0.4):
        pipeline.run(config(f"ratio={ratio}"), tmp_path / f"ratio={ratio}")
    for ratio, state in ((0.6, "failed"), (0.7, "interrupted")):
        folder = tmp_path / f"ratio={ratio}"
        write_json(folder / "config.json", config(f"ratio={ratio}").dump())
        write_json(folder / "status.json", {"state": state, "error": "why it failed"})
    text = write_report(collect(tmp_path))
    main, retained = text.split("## Retained of the dense model")
    assert retained.count("| tiny | lorap | 0.400") == 1
    rows = [line for line in main.splitlines() if line.startswith("| tiny")]
    assert len(rows) == 4
    assert "| dense | 0.000 | 1.000 |" in rows[0]
    assert rows[2].endswith("failed |") and rows[3].endswith("interrupted |")
    assert "why it failed" in text
    for column in ("pydoc A", "pydoc B", "BoolQ", "OBQA", "mean7_paper", "mean7_acc"):
        assert column in text
    table = pd.read_csv(tmp_path / "report.csv")
    result = json.loads((tmp_path / "ratio=0.4" / "result.json").read_text())
    assert table.loc[1, "pydoc A"] == pytest.approx(result["scores"]["perplexity"][0]["perplexity"])
    assert table.loc[1, "mean7_paper"] == pytest.approx(
        100 * result["means"]["mean7_paper"]["value"]
    )
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"


def test_settings_that_tell_jobs_apart_become_columns(config: Make) -> None:
    jobs = [
        config(f"calibration.seed={s}", f"ratio={r}").dump() for s in (0, 1) for r in (0.2, 0.5)
    ]
    assert distinctions(jobs) == {"calibration.seed": ["0", "0", "1", "1"]}
    texts = [config(f"calibration={name}").dump() for name in ("c4", "wikitext2")]
    assert distinctions(texts) == {"calibration.name": ["c4", "wikitext2"]}
    assert distinctions([config("ratio=0.2").dump(), config("ratio=0.3").dump()]) == {}


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(LorapError, match=r"holds jobs with config.json"):
        collect(tmp_path)


def test_seeds_become_a_mean_and_a_spread(tmp_path: Path, config: Make) -> None:
    scores = []
    for seed in (0, 1, 2):
        cfg = config(f"seed={seed}", "ratio=0.4", "evaluation.zero_shot=null")
        result = pipeline.run(cfg, tmp_path / str(seed))
        scores.append(result.scores.perplexity[0].perplexity)
    text = write_report(collect(tmp_path))
    table = pd.read_csv(tmp_path / "report.csv")
    assert len(table) == 1 and table.loc[0, "seeds"] == 3
    assert table.loc[0, "pydoc A"] == pytest.approx(statistics.mean(scores))
    assert table.loc[0, "pydoc A ±"] == pytest.approx(statistics.stdev(scores))
    assert f"{statistics.mean(scores):.2f} ± {statistics.stdev(scores):.2f}" in text


def test_settings_are_never_taken_for_seeds(config: Make, tmp_path: Path) -> None:
    """Two jobs that differ in seed and metric are two rows, and dense rows keep their profile."""
    for name, overrides in {
        "a": ["seed=0", "ratio=0.4"],
        "b": ["seed=1", "ratio=0.4", "method.stages.attention.metric=svd"],
        "c": ["seed=0", "ratio=0"],
        "d": ["seed=0", "ratio=0", "evaluation.perplexity.profile=svd_llm"],
    }.items():
        cfg = config(
            "evaluation.zero_shot=null", "evaluation.perplexity.max_tokens=2048", *overrides
        )
        pipeline.run(cfg, tmp_path / name)
    text = write_report(collect(tmp_path)).split("## Retained")[0]
    assert len([line for line in text.splitlines() if line.startswith("| tiny")]) == 4
    assert "evaluation.perplexity.profile" in text and "method.stages.attention.metric" in text


def test_a_job_with_a_broken_configuration_does_not_break_the_report(tmp_path: Path) -> None:
    write_json(tmp_path / "broken" / "config.json", {"ratio": "much"})
    write_json(tmp_path / "broken" / "status.json", {"state": "failed", "error": "ratio must be"})
    assert "ratio must be" in write_report(collect(tmp_path))


def test_methods_scored_in_different_ways_are_told_apart(make: Callable[..., Result]) -> None:
    """No method varies in itself, so only the comparison across methods shows it."""
    short, long = ({"name": "quick", "limit": limit} for limit in (3, 30))
    results = [make("lorap", evaluation=short), make("svd", evaluation=long)]
    found = distinctions([result.config for result in results])
    assert list(found) == ["evaluation.limit"]
    windows = [make("dense", 0.0)]
    windows += [make(m, calibration={"seed": s}) for m, s in (("lorap", 1), ("svd", 2))]
    assert "calibration.seed" in distinctions([result.config for result in windows])
    assert not distinctions([result.config for result in windows[:2]]), "of no dense model"


def test_one_seed_has_no_spread_and_keeps_its_standard_error(make: Callable[..., Result]) -> None:
    lone = frame([make("lorap", seed=0), make("svd", seed=1)])
    assert "seeds" not in lone and "± 5.00" in markdown(lone)
    mixed = frame([make("lorap", seed=0), make("lorap", seed=1), make("svd", seed=1)])
    assert mixed["seeds"].tolist() == [2, 1]
    assert "± -" not in markdown(mixed)


def test_what_is_retained_is_averaged_over_seeds(make: Callable[..., Result]) -> None:
    seeds = [make("lorap", perplexity=p, seed=s) for s, p in ((0, 20.0), (1, 40.0))]
    table = retained([make("dense", 0.0, 10.0), *seeds])
    assert table["perplexity x, WikiText-2"].tolist() == [3.0]


def test_the_terminal_has_every_cell_in_100_columns(sweep: Path) -> None:
    """Columns that do not fit stand below, each row beside its own model, method and ratio."""
    found = collect(sweep)
    lines = overview(found, 100).splitlines()
    assert max(map(len, lines)) <= 100
    table = found.table()
    cells, rows = " ".join(lines).split(), shown(table)[1]
    for column, *values in zip(shown(table)[0], *rows, strict=True):
        assert set(column.split()) <= set(cells)
        assert {word for value in values for word in value.text.split()} <= {
            cell.rstrip("*") for cell in cells
        }
    heads = [line.split()[:3] for line in lines if line.startswith("model ")]
    assert len(heads) > 2 and all(head == ["model", "method", "ratio"] for head in heads)
    assert any(cell.endswith("*") for cell in cells)
    assert "* is the best of its model and ratio." in lines


def test_a_narrow_terminal_still_has_one_column_beside_the_keys(sweep: Path) -> None:
    table = collect(sweep).table()
    first = columns_within(table, frozenset(), 10).split("\n\n")
    assert len(first) == len(shown(table)[0]) - 3
    assert all(len(block.splitlines()) == len(table) + 1 for block in first)
