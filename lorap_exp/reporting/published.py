"""Measured beside published: what an experiment reproduces, the difference, and the rest of the
published table."""

from collections.abc import Iterable, Iterator, Sequence
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
    """What was measured above what was published, and the sources of that.

    Results on embedded data, under another profile or with other settings of the method have
    none: they cannot be compared. A subset of the text or of the questions is named as such. The
    difference follows where the model is the published one. Seeds are averaged.
    """
    known = tables()
    rows: list[dict[str, Any]] = []
    sources: dict[str, None] = {}
    for alike, name, row in _by_setting(_counterparts(results, known)):
        result = alike[0]
        scores = pd.DataFrame([cells(one) for one in alike]).mean(numeric_only=True).to_dict()
        measured = cells(result) | scores
        published = _values(known[name], row)
        shared = [column for column in published if column in measured]
        head = {"method": row["method"], "ratio": row["ratio"]}
        settings = dict(flatten(result.config))
        rows += [
            head
            | {"what": f"measured, {measured['model']}{subset(settings)}"}
            | {c: measured[c] for c in shared},
            head | {"what": f"published, {name}"} | {c: published[c] for c in shared},
        ]
        if measured["model"] == known[name]["model"]:
            differences = {c: measured[c] - published[c] for c in shared}
            rows.append(head | {"what": "difference"} | differences)
        sources[_source(known, name)] = None
    return pd.DataFrame(rows), list(sources)


def other_published(results: Sequence[Result]) -> tuple[pd.DataFrame, list[str]]:
    """The published rows at the measured ratios that have no measured counterpart, and sources.

    They are listed as soon as one comparable result names a published table, whatever its
    settings: the rows are the literature's, not a comparison.
    """
    known = tables()
    measured = {
        (name, row["method"], row["ratio"]) for _, name, row in _counterparts(results, known)
    }
    ratios = {
        (result.config["published"], result.config["ratio"])
        for result in results
        if result.comparable and result.config["published"] is not None
    }
    rows: list[dict[str, Any]] = []
    sources: dict[str, None] = {}
    for name, table in known.items():
        for row in table["rows"]:
            asked = (table.get("beside", name), row["ratio"]) in ratios
            if not asked or (name, row["method"], row["ratio"]) in measured:
                continue
            head = {"method": row["method"], "tuned": "tuned" if row["tuned"] else "untuned"}
            rows.append(head | {"ratio": row["ratio"], "table": name} | _values(table, row))
            sources[_source(known, name)] = None
    order = ["ratio", "tuned", "method"]
    found = pd.DataFrame(rows)
    if not found.empty:
        found = found.sort_values(order, ascending=[True, False, True], ignore_index=True)
    return found, list(sources)


def subset(settings: dict[str, str]) -> str:
    """A remark when not everything was scored."""
    limits = ("evaluation.perplexity.max_tokens", "evaluation.zero_shot.limit")
    return " (subset)" if any(settings.get(key, "None") != "None" for key in limits) else ""


def _by_setting(
    found: Iterable[tuple[Result, str, dict[str, Any]]],
) -> list[tuple[list[Result], str, dict[str, Any]]]:
    """Results that differ in their seeds only, together."""
    groups: dict[Any, tuple[list[Result], str, dict[str, Any]]] = {}
    for result, name, row in found:
        key = (*sorted(flatten(result.config)), name, row["method"], row["ratio"])
        groups.setdefault(key, ([], name, row))[0].append(result)
    return list(groups.values())


def _counterparts(
    results: Sequence[Result], known: dict[str, dict[str, Any]]
) -> Iterator[tuple[Result, str, dict[str, Any]]]:
    """Every result with the name and the row of the published table that it reproduces."""
    for result in results:
        name = result.config["published"]
        if name is None or not result.comparable:
            continue
        measured = cells(result)
        settings = dict(flatten(result.config))
        if any(settings.get(k, str(v)) != str(v) for k, v in known[name]["requires"].items()):
            continue
        for row in known[name]["rows"]:
            if (row["method"], row["ratio"]) == (measured["method"], measured["ratio"]):
                yield result, name, row


def _values(table: dict[str, Any], row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a published row by column; what was not published is left out."""
    pairs = zip(table["columns"], row["values"], strict=True)
    return {column: value for column, value in pairs if value is not None}


def _source(known: dict[str, dict[str, Any]], name: str) -> str:
    return f"{name}: {known[name]['source']}"
