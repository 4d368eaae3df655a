"""What a compressed model retains of the dense one, by group of abilities (arXiv 2403.19135).

retained = 100 * mean(compressed) / mean(dense): classification over the tasks (the paper's metric
of each), generation over next-word accuracy. Only jobs that were scored alike are compared.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from lorap_exp.evaluation.accuracy import commonsense
from lorap_exp.reporting.result import Result
from lorap_exp.reporting.table import cells, distinctions


def retained(results: Sequence[Result]) -> pd.DataFrame:
    """One row for each compressed setting whose dense counterpart is there, means over seeds."""
    dense = {_scored(result): result for result in results if result.plan.is_dense}
    chosen = [r for r in results if not r.plan.is_dense and _scored(r) in dense]
    rows = []
    extra = distinctions([result.config for result in chosen])
    for index, result in enumerate(chosen):
        base, row = dense[_scored(result)], cells(result)
        own: dict[str, Any] = {name: row[name] for name in ("model", "method", "ratio", "kept")}
        own |= {name: values[index] for name, values in extra.items()}
        count = len(commonsense(result.scores.tasks))
        if count:
            means = (one.scores.means()[f"mean{count}_paper"]["value"] for one in (result, base))
            own["classification %"] = _percent(*means)
        if result.scores.generation is not None and base.scores.generation is not None:
            own["generation %"] = _percent(
                result.scores.generation.accuracy, base.scores.generation.accuracy
            )
        for after, before in zip(result.scores.perplexity, base.scores.perplexity, strict=True):
            own[f"perplexity x, {after.label}"] = after.perplexity / before.perplexity
        own |= {name: row[name] for name in ("stability", "agreement") if name in row}
        rows.append(own)
    settings = ["model", "method", "ratio", *extra]
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows)
    numbers = [name for name in table.columns if name not in settings]
    over_seeds = table.groupby(settings, sort=False, dropna=False)[numbers].mean().reset_index()
    ordered = over_seeds.sort_values(settings, kind="stable", ignore_index=True)
    return ordered[list(table.columns)]


def _percent(after: float, before: float) -> float:
    return 100 * after / before if before else float("nan")


def _scored(result: Result) -> str:
    """What decides whether two results can be compared."""
    config = result.config
    return str((config["model"], config["evaluation"], config["data"]["source"], config["dtype"]))
