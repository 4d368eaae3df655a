"""Measured beside published: what an experiment reproduces, and the difference."""

from collections.abc import Sequence
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
    """Three rows for each result that has a published counterpart, and the sources of those.

    Results on embedded data, under another profile or with other settings of the method have
    none: they cannot be compared. A subset of the text or of the questions is named as such.
    """
    known = tables()
    rows: list[dict[str, Any]] = []
    sources: dict[str, None] = {}
    for result in results:
        name = result.config["published"]
        if name is None or not result.comparable:
            continue
        measured = cells(result)
        settings = dict(flatten(result.config))
        if any(settings.get(k, str(v)) != str(v) for k, v in known[name]["requires"].items()):
            continue
        for row in known[name]["rows"]:
            if (row["method"], row["ratio"]) != (measured["method"], measured["ratio"]):
                continue
            published = dict(zip(known[name]["columns"], row["values"], strict=True))
            shared = [column for column in published if column in measured]
            head = {"method": row["method"], "ratio": row["ratio"]}
            rows += [
                head
                | {"what": f"measured, {measured['model']}{subset(settings)}"}
                | {c: measured[c] for c in shared},
                head | {"what": f"published, {name}"} | {c: published[c] for c in shared},
                head | {"what": "difference"} | {c: measured[c] - published[c] for c in shared},
            ]
            sources[f"{name}: {known[name]['source']}"] = None
    return pd.DataFrame(rows), list(sources)


def subset(settings: dict[str, str]) -> str:
    """A remark when not everything was scored."""
    limits = ("evaluation.perplexity.max_tokens", "evaluation.zero_shot.limit")
    return " (subset)" if any(settings.get(key, "None") != "None" for key in limits) else ""
