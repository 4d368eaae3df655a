"""The report's table of measured beside published numbers. Belongs to tests/reporting."""

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from lorap_exp.commands.catalogue import conf_folder
from lorap_exp.config import PublishedName
from lorap_exp.evaluation.accuracy import TaskScore
from lorap_exp.evaluation.perplexity import Perplexity
from lorap_exp.evaluation.scores import Scores
from lorap_exp.planning.edits import Drop, Plan
from lorap_exp.reporting.published import beside_published, tables
from lorap_exp.reporting.result import Result
from lorap_exp.reporting.table import TASK_COLUMNS

LORAP = {"evaluation": {"perplexity": {"profile": "lorap"}}, "ratio_of": "decoder"}


def made(
    method: str, ratio: float, perplexity: float = 20.0, stages: Any = None, **config: Any
) -> Result:
    settings: dict[str, Any] = {"ratio": ratio, "seed": 0, "published": "llama_7b"}
    settings["method"] = {"name": method, "stages": stages or {}}
    settings |= {"model": {"name": "llama-7b"}} | LORAP | config
    scored: dict[str, Any] = {
        "length": 128,
        "split": "test",
        "sha256": "0",
        "tokens": 9,
        "nll": 3.0,
        "seconds": 1,
    }
    text = Perplexity("wikitext2", "WikiText-2", "lorap", perplexity=perplexity, **scored)
    measured = {"metric": "acc", "value": 0.5, "stderr": 0.05, "metrics": {"acc": 0.5}}
    levels = {"chance": 0.5, "majority": 0.5, "shots": 0, "form": "packed"}
    boolq = TaskScore(task="boolq", samples=100, **measured, **levels, seconds=1.0)  # type: ignore[arg-type]
    return Result(
        config=settings,
        versions={},
        commit=None,
        device="cpu",
        source="",
        comparable=True,
        calibration={},
        shapes=(),
        plan=Plan(ratio, (Drop((0,)),) if ratio else ()),
        parameters={"dense": {"decoder": 10}, "compressed": {"decoder": 8, "total": 9}},
        bytes={"dense": 20, "compressed": 18},
        curves={},
        scores=Scores((text,), (boolq,)),
        seconds={},
        peak_memory={},
    )


def whats(results: list[Result], method: str) -> list[str]:
    table, _ = beside_published(results)
    return list(table[table["method"] == method]["what"])


def test_measured_stands_above_published_and_the_difference_follows() -> None:
    table, sources = beside_published([made("lorap", 0.2, 16.0)])
    rows = table[table["method"] == "lorap"]
    assert list(rows["what"]) == ["measured, llama-7b", "published, llama_7b", "difference"]
    assert rows["WikiText-2"].tolist() == pytest.approx([16.0, 15.69, 0.31])
    assert rows["BoolQ"].tolist() == pytest.approx([50, 71.93, -21.93])
    assert set(table["ratio"]) == {0.2}
    assert any("2404.09695" in source for source in sources)


def test_rows_that_were_not_run_are_quoted() -> None:
    results = [made("lorap", 0.2), made("flap", 0.2)]
    for method in ("lora_prune", "lora_shear", "wanda_sp", "llm_pruner_lora"):
        assert whats(results, method), method
        assert all(what.startswith("quoted, ") for what in whats(results, method))
    assert whats(results, "flap")[:2] == ["measured, llama-7b", "published, llama_7b_flap"]
    table, _ = beside_published(results)
    tuned = table[table["tuned"] == "tuned"]["method"]
    assert set(tuned) == {"llm_pruner_lora", "lora_prune", "lora_shear", "lorap_lora"}
    assert list(table["tuned"]) == sorted(table["tuned"], reverse=True), "untuned first"


def test_seeds_are_averaged_and_another_model_has_no_difference() -> None:
    seeds = [made("lorap", 0.2, p, seed=s, model={"name": "tiny"}) for s, p in ((0, 15), (1, 19))]
    table, _ = beside_published(seeds)
    rows = table[table["method"] == "lorap"]
    assert list(rows["what"]) == ["measured, tiny", "published, llama_7b"]
    assert rows["WikiText-2"].iloc[0] == 17


@pytest.mark.parametrize(
    ("method", "settings", "found"),
    [
        ("llm_pruner", {"ratio_of": "model"}, True),
        ("llm_pruner", {}, False),
        ("lorap", {"ratio_of": "model"}, False),
        ("lorap", {"evaluation": {"perplexity": {"profile": "asvd"}}}, False),
        ("lorap", {"stages": {"mlp": {"keep_least": 0.0}}}, False),
    ],
)
def test_only_the_published_settings_are_compared(
    method: str, settings: dict[str, Any], found: bool
) -> None:
    first = whats([made(method, 0.2, **settings)], method)[0]
    assert first.startswith("measured" if found else "quoted")


def test_another_harness_has_no_difference() -> None:
    laco = made("laco", 0.25, published="streamline_llama2_7b", model={"name": "Llama-2-7b-hf"})
    assert whats([laco], "laco") == ["measured, Llama-2-7b-hf", "published, streamline_llama2_7b"]


def test_what_is_not_comparable_is_left_out() -> None:
    assert beside_published([replace(made("lorap", 0.2), comparable=False)])[0].empty
    assert beside_published([made("lorap", 0.2, published=None)])[0].empty


def test_every_table_can_be_asked_for() -> None:
    groups = {table.get("beside", name) for name, table in tables().items()}
    assert groups == set(get_args(PublishedName))
    for path in (conf_folder() / "experiment" / "paper").glob("*.yaml"):
        name = yaml.safe_load(path.read_text()).get("published")
        assert name is None or name in groups


def test_published_means_are_the_means_of_their_tasks() -> None:
    checked = 0
    for table in tables().values():
        for row in table["rows"]:
            values = dict(zip(table["columns"], row["values"], strict=True))
            tasks = [value for column, value in values.items() if column in TASK_COLUMNS.values()]
            if tasks and "mean7_paper" in values:
                checked += 1
                assert statistics.mean(tasks) == pytest.approx(values["mean7_paper"], abs=0.011)
    assert checked == 16


def source_of(shared: Path, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((shared / "spec" / name).read_text())
    return loaded


def rows_of(name: str) -> dict[tuple[str, float, bool], list[float | None]]:
    return {(r["method"], r["ratio"], r["tuned"]): r["values"] for r in tables()[name]["rows"]}


def test_lorap_s_table_is_that_of_the_source(shared: Path) -> None:
    source, rows = source_of(shared, "published.yaml")["llama_7b"], rows_of("llama_7b")
    assert rows.pop(("dense", 0.0, False)) == source["dense"]
    assert rows.pop(("dense (LLaMA paper)", 0.0, False)) == source["dense_llama_paper"]
    tuned_names = {"lorap": "lorap_lora", "llm_pruner": "llm_pruner_lora"}
    for key, methods in source.items():
        if key.startswith("ratio_"):
            _, ratio, kind = key.split("_")
            for method, values in methods.items():
                name = tuned_names.get(method, method) if kind == "tuned" else method
                assert rows.pop((name, float(ratio), kind == "tuned")) == values
    assert rows == {}


def test_streamline_s_table_is_that_of_the_source(shared: Path) -> None:
    source = source_of(shared, "published.yaml")["llm_streamline"]
    table = tables()["streamline_llama2_7b"]
    names = {"llm_streamline": "streamline"}
    columns = {"c3": "C3", "cmnli": "CMNLI", "chid": "CHID", "boolq": "BoolQ", "wsc": "WSC"}
    columns |= {"hellaswag": "HellaSwag", "piqa": "PIQA", "race_middle": "RACE-m"}
    columns |= {"race_high": "RACE-h", "mmlu": "MMLU", "cmmlu": "CMMLU"}
    found = {
        row["method"]: dict(zip(table["columns"], row["values"], strict=True))
        for row in table["rows"]
    }
    for method, values in source["llama_2_7b"].items():
        named = {columns[c]: v for c, v in zip(source["columns"], values, strict=True)}
        assert found.pop(names.get(method, method)) == named
    assert found == {}


@pytest.mark.parametrize(
    ("name", "model"), [("svd_llama_7b", "llama_7b"), ("llama3_8b", "llama3_1_8b")]
)
def test_lowrankarena_is_that_of_the_source(shared: Path, name: str, model: str) -> None:
    source = source_of(shared, "published_2026.yaml")["lowrankarena"][model]
    found = {(method, ratio): values for (method, ratio, _), values in rows_of(name).items()}
    assert found.pop(("dense", 0.0)) == source["dense"]
    for keep, ratio in (("keep_0.8", 0.2), ("keep_0.6", 0.4)):
        for method, values in source[keep].items():
            assert found.pop((method, ratio)) == values
    assert found == {}
