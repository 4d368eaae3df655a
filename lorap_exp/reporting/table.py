"""The paper's table: one row for each job, perplexities, the seven tasks and both means."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from lorap_exp.reporting.result import Result

TASK_COLUMNS = {
    "boolq": "BoolQ",
    "piqa": "PIQA",
    "hellaswag": "HellaSwag",
    "winogrande": "WinoGrande",
    "arc_easy": "ARC-e",
    "arc_challenge": "ARC-c",
    "openbookqa": "OBQA",
}
LEADING = ["model", "method", "ratio", "kept", "params (M)"]


def cells(result: Result) -> dict[str, Any]:
    """The row of a result by column; accuracies in percent, standard errors beside the means."""
    config = result.config
    row: dict[str, Any] = {
        "model": config["model"]["name"],
        "method": "dense" if result.plan.is_dense else config["method"]["name"],
        "ratio": config["ratio"],
        "kept": result.kept,
        "params (M)": result.parameters["compressed"]["total"] / 1e6,
    }
    row |= {score.label: score.perplexity for score in result.scores.perplexity}
    row |= {TASK_COLUMNS[task.task]: 100 * task.paper[0] for task in result.scores.tasks}
    for name, mean in result.scores.means().items():
        row[name] = 100 * mean["value"]
        row[f"{name} ±"] = 100 * mean["stderr"]
    return row


def columns(results: Sequence[Result]) -> list[str]:
    """Column order of the paper: what was compressed, perplexities, tasks, means."""
    found = [name for result in results for name in cells(result)]
    perplexities = [s.label for result in results for s in result.scores.perplexity]
    means = [name for name in found if name.startswith("mean")]
    order = [*LEADING, *perplexities, *TASK_COLUMNS.values(), *means]
    return list(dict.fromkeys(name for name in order if name in found or name in LEADING))


def frame(results: Sequence[Result], failures: Sequence[dict[str, Any]] = ()) -> pd.DataFrame:
    """The table as numbers, with a `status` column when a job failed or is missing."""
    rows = [cells(result) for result in results]
    order = columns(results)
    if failures:
        rows = [row | {"status": "done"} for row in rows] + [dict(f) for f in failures]
        order = [*order, "status"]
    table = pd.DataFrame(rows, columns=order)
    return table.sort_values(["model", "ratio", "method"], kind="stable", ignore_index=True)


def markdown(table: pd.DataFrame) -> str:
    """The table for people: two decimals, a dash where there is no number."""
    shown = table.copy().astype(object)
    for name in table.columns:
        digits = 3 if name in ("ratio", "kept") else 2
        shown[name] = [_format(value, digits) for value in table[name]]
    shown = _fold_errors(shown)
    lines = ["| " + " | ".join(shown.columns) + " |", "|" + " --- |" * len(shown.columns)]
    lines += ["| " + " | ".join(row) + " |" for row in shown.itertuples(index=False)]
    return "\n".join(lines) + "\n"


def _format(value: Any, digits: int) -> str:
    if isinstance(value, str):
        return value.replace("|", "\\|")
    return "-" if pd.isna(value) else f"{value:.{digits}f}"


def _fold_errors(shown: pd.DataFrame) -> pd.DataFrame:
    """`mean` and `mean ±` become one column `value ± error`."""
    for name in [c for c in shown.columns if c.endswith(" ±")]:
        mean = name.removesuffix(" ±")
        shown[mean] = [
            value if value == "-" else f"{value} ± {error}"
            for value, error in zip(shown[mean], shown[name], strict=True)
        ]
        shown = shown.drop(columns=name)
    return shown
