"""Measured beside published: every row of the tables that an experiment reproduces."""

from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

import pandas as pd
import yaml

from lorap_exp.reporting.result import Result
from lorap_exp.reporting.table import cells, flatten


def tables() -> dict[str, dict[str, Any]]:
    """Published tables by name."""
    file = resources.files("lorap_exp.reporting") / "published.yaml"
    loaded: dict[str, dict[str, Any]] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return loaded


def beside_published(results: Sequence[Result]) -> tuple[pd.DataFrame, list[str]]:
    """What was measured above what was published, row by row, and the sources of that.

    A published row at a measured ratio is `quoted` where nothing measured can be set above it: the
    method did not run, or on embedded data, under another profile or with other settings. A subset
    of the text or of the questions is named as such. The difference follows where the model is the
    published one and both were scored by the same code. Seeds are averaged.
    """
    known = tables()
    comparable = [r for r in results if r.comparable and r.config["published"] is not None]
    asked = {(result.config["published"], result.config["ratio"]) for result in comparable}
    rows: list[tuple[Any, list[dict[str, Any]]]] = []
    sources: dict[str, None] = {}
    for name, table in known.items():
        for number, row in enumerate(table["rows"]):
            if (table.get("beside", name), row["ratio"]) not in asked:
                continue
            order = (row["ratio"], row["tuned"], row["method"], name, number)
            rows.append((order, _compared(name, table, row, comparable)))
            sources[f"{name}: {table['source']}"] = None
    lines = [line for _, found in sorted(rows, key=lambda pair: pair[0]) for line in found]
    return pd.DataFrame(lines), list(sources)


def _compared(
    name: str, table: dict[str, Any], row: dict[str, Any], results: Sequence[Result]
) -> list[dict[str, Any]]:
    """The lines of a published row: measured, published, difference; or quoted."""
    head = {"method": row["method"], "ratio": row["ratio"]}
    head |= {"tuned": "tuned" if row["tuned"] else "untuned"}
    published, lines, differences = _values(table, row), [], []
    groups = _by_setting(result for result in results if _reproduces(result, name, table, row))
    for alike in groups:
        scores = pd.DataFrame([cells(one) for one in alike]).mean(numeric_only=True).to_dict()
        measured = cells(alike[0]) | scores
        shared = {column: measured[column] for column in published if column in measured}
        what = f"measured, {measured['model']}{subset(dict(flatten(alike[0].config)))}"
        lines.append(head | {"what": what} | shared)
        if measured["model"] == table["model"] and table.get("harness") != "other":
            difference = {column: value - published[column] for column, value in shared.items()}
            differences.append(head | {"what": "difference"} | difference)
    lines.append(head | {"what": f"{'published' if groups else 'quoted'}, {name}"} | published)
    return [*lines, *differences]


def _reproduces(result: Result, name: str, table: dict[str, Any], row: dict[str, Any]) -> bool:
    """The result was made as the published row says, and shares a score with it."""
    if result.config["published"] != table.get("beside", name):
        return False
    measured, settings = cells(result), dict(flatten(result.config))
    required = table.get("requires", {}) | row.get("requires", {})
    if any(settings.get(key, str(value)) != str(value) for key, value in required.items()):
        return False
    if not set(_values(table, row)) & set(measured):
        return False
    return (row["method"], row["ratio"]) == (measured["method"], measured["ratio"])


def subset(settings: dict[str, str]) -> str:
    """A remark when not everything was scored."""
    limits = ("evaluation.perplexity.max_tokens", "evaluation.zero_shot.limit")
    return " (subset)" if any(settings.get(key, "None") != "None" for key in limits) else ""


def _by_setting(results: Iterable[Result]) -> list[list[Result]]:
    """Results that differ in their seeds only, together."""
    groups: dict[Any, list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(sorted(flatten(result.config))), []).append(result)
    return list(groups.values())


def _values(table: dict[str, Any], row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a published row by column; what was not published is left out."""
    pairs = zip(table["columns"], row["values"], strict=True)
    return {column: value for column, value in pairs if value is not None}
