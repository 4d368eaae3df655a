"""The paper's table: one row for each job, perplexities, the seven tasks and both means."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from lorap_exp.config import bookkeeping
from lorap_exp.data.tasks import TASKS, column
from lorap_exp.evaluation.efficiency import Efficiency
from lorap_exp.reporting.choice import Choice
from lorap_exp.reporting.result import Result

TASK_COLUMNS = {name: task.column for name, task in TASKS.items()}
NEXT_WORD = "next word"
NOT_NUMBERS = frozenset((*bookkeeping(), "seed"))
SPEEDS = ("weights (MB)", "KV (kB/token)", "speed x")
"""Settings that tell no two rows apart; seeds are averaged over."""
OF_COMPRESSION = ("method.", "calibration.", "export", "choose.", "target.")
"""Settings without meaning for a dense model."""
YARDSTICKS = ("evaluation.", "data.", "ratio_of")
"""Settings that change what is measured: rows that differ in them cannot be compared."""
QUANTISE = "lorap_exp.methods.quantise.Quantise"
"""A stage that acts at ratio 0 too."""
SIZE = "MiB"
"""Of the weights on disk."""
LEADING = ["model", "method", "ratio", "kept", "params (M)", SIZE]
"""Settings that tell jobs apart stand between method and ratio."""


def cells(result: Result) -> dict[str, Any]:
    """The row of a result by column; accuracies in percent, standard errors beside the means."""
    config = result.config
    row = leading_cells(config, result.choice) | {
        "kept": result.kept,
        "params (M)": result.parameters["compressed"]["total"] / 1e6,
        SIZE: result.bytes["compressed"] / 2**20,
    }
    if result.plan.is_dense:
        row["method"] = "dense"
    row |= {score.label: score.perplexity for score in result.scores.perplexity}
    row |= {column(task.task): 100 * task.value for task in result.scores.tasks}
    if result.scores.generation is not None:
        row[NEXT_WORD] = 100 * result.scores.generation.accuracy
    if result.scores.efficiency is not None:
        row |= speed_cells(result.scores.efficiency)
    for name, mean in result.scores.means().items():
        row[name] = 100 * mean["value"]
        if mean["stderr"] is not None:
            row[f"{name} ±"] = 100 * mean["stderr"]
    return row


def speed_cells(found: Efficiency) -> dict[str, Any]:
    """What was gained: the median of each speed over the dense model's, and bytes."""
    row: dict[str, Any] = {"weights (MB)": sum(found.bytes.values()) / 1e6}
    row["KV (kB/token)"] = found.kv_bytes / 1e3
    row |= {f"speed x, {s.what}": s.ratio for s in found.speeds if s.ratio is not None}
    return row


def distinctions(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Settings that tell apart jobs of one model, method and ratio, and their value in each job.

    What rows are scored on, and calibrated on, tells apart jobs of different methods too. Of
    settings that always change together, the shortest name stands for all, a yardstick's first.
    """
    flat = [dict(flatten(config)) for config in configs]
    compressed = [config for config in flat if not _is_dense(config)]
    varying = _varying(flat, ("model.name", "method.name", "ratio"))
    varying |= {name for name in _varying(flat, ("model.name",)) if name.startswith(YARDSTICKS)}
    varying |= {n for n in _varying(compressed, ("model.name",)) if n.startswith("calibration.")}
    found: dict[str, list[str]] = {}
    for name in sorted(varying, key=_prominence):
        values = [config.get(name, "-") for config in flat]
        if not any(_same_partition(values, other) for other in found.values()):
            found[name] = values
    return found


def _varying(configs: Sequence[Mapping[str, str]], by: Sequence[str]) -> set[str]:
    """Settings with several values among the configurations that agree in `by`."""
    groups: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for config in configs:
        groups.setdefault(tuple(config.get(name, "-") for name in by), []).append(config)
    return {
        name
        for group in groups.values()
        for name in {name for config in group for name in config}
        if len({config.get(name, "-") for config in group}) > 1
    }


def _is_dense(config: Mapping[str, str]) -> bool:
    none = config.get("method.name") == "dense" or config.get("ratio") in ("0", "0.0")
    return none and QUANTISE not in config.values()


def _prominence(name: str) -> tuple[bool, bool, int, str]:
    return (not name.startswith(YARDSTICKS), not name.endswith(".name"), len(name), name)


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings that can change a number, by dotted name."""
    for key, value in node.items():
        if f"{prefix}{key}" in NOT_NUMBERS:
            continue
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        elif not (prefix.startswith("method.") and key == "seed"):
            yield f"{prefix}{key}", str(value)


def _same_partition(one: Sequence[str], other: Sequence[str]) -> bool:
    pairs = set(zip(one, other, strict=True))
    return len(pairs) == len(set(one)) == len(set(other))


def columns(results: Sequence[Result]) -> list[str]:
    """Column order of the paper: what was compressed, perplexities, tasks, means."""
    found = [name for result in results for name in cells(result)]
    perplexities = [s.label for result in results for s in result.scores.perplexity]
    means = [name for name in found if name.startswith(("mean", "stability", "agreement"))]
    tasks = [column(task.task) for result in results for task in result.scores.tasks]
    order = [*LEADING, *perplexities, *TASK_COLUMNS.values(), *tasks, NEXT_WORD, *means]
    order += [name for name in found if name.startswith(SPEEDS)]
    return list(dict.fromkeys(name for name in order if name in found or name in LEADING))


def frame(
    results: Sequence[Result],
    unfinished: Sequence[tuple[Mapping[str, Any], str]] = (),
    sweeps: Sequence[str] = (),
    further: Sequence[dict[str, float]] = (),
) -> pd.DataFrame:
    """The table as numbers.

    Settings that tell jobs apart become columns; `status` is one when a job is not finished.

    Args:
        results: finished jobs.
        unfinished: (configuration, state) of the others.
        sweeps: the sweep of each job, finished ones first; a column where settings repeat.
        further: columns beside the paper's, for each finished job.
    """
    added = further or [{}] * len(results)
    rows = [cells(result) | more for result, more in zip(results, added, strict=True)]
    states = ["done"] * len(rows) + [state for _, state in unfinished]
    rows += [leading_cells(config) for config, _ in unfinished]
    configs = [result.config for result in results] + [config for config, _ in unfinished]
    names = [*columns(results), *dict.fromkeys(name for more in added for name in more)]
    table = pd.DataFrame(rows, columns=names)
    order = _insert_settings(table, configs, sweeps)
    if unfinished:
        table["status"] = states
    table = table.sort_values(order, kind="stable", ignore_index=True)
    repeated = (table["method"] == "dense") & table.duplicated([*order, "seed"])
    table = table[~repeated]
    several = (table.groupby(order, dropna=False)["seed"].nunique() > 1).any()
    table = over_seeds(table, order) if several else table.drop(columns="seed")
    return table.reset_index(drop=True)


def _insert_settings(
    table: pd.DataFrame, configs: Sequence[Mapping[str, Any]], sweeps: Sequence[str]
) -> list[str]:
    """Add the columns that tell the jobs apart, and `seed`; return those that rows go by."""
    compressed = table["method"] != "dense"
    extra = distinctions(configs)
    for position, (name, values) in enumerate(extra.items(), start=2):
        applies = compressed | (not name.startswith(OF_COMPRESSION))
        table.insert(position, name, pd.Series(values).where(applies, "-"))
    table["seed"] = [str(config.get("seed", "-")) for config in configs]
    order = ["model", "ratio", "method", *extra]
    if sweeps and table[compressed].duplicated([*order, "seed"]).any():
        order.append("sweep")
        table.insert(2 + len(extra), "sweep", pd.Series(sweeps).where(compressed, "-"))
    return order


def over_seeds(table: pd.DataFrame, settings: Sequence[str]) -> pd.DataFrame:
    """One row for each setting: means over seeds; ` ±` columns become the spread over seeds.

    The spread is the sample standard deviation; `seeds` counts the finished jobs.
    """
    after = max(list(table.columns).index(name) for name in settings) + 1
    keys = [*table.columns[:after], *(name for name in ("status",) if name in table.columns)]
    scores = [
        name
        for name in table.columns[after:]
        if name not in (*LEADING, "status", "seed") and not name.endswith(" ±")
    ]
    grouped = table.groupby(keys, sort=False, dropna=False)
    rows = grouped[["kept", "params (M)", SIZE, *scores]].mean()
    for name in scores:
        rows.insert(list(rows.columns).index(name) + 1, f"{name} ±", grouped[name].std())
    rows["seeds"] = grouped["kept"].count()
    return rows.reset_index()


def leading_cells(config: Mapping[str, Any], choice: Choice | None = None) -> dict[str, Any]:
    """Model, method and ratio: what was asked for, or chosen where that was left open; a dash or
    NaN where the configuration is wrong."""
    ratio, method = config.get("ratio"), config.get("method") or {}
    name = method.get("name", "-")
    if name == "dense" and method.get("stages"):
        name = " + ".join([name, *method["stages"]])
    if choice is not None:
        ratio, name = choice.ratio, choice.label
    return {
        "model": (config.get("model") or {}).get("name", "-"),
        "method": name,
        "ratio": float(ratio) if isinstance(ratio, int | float) else math.nan,
    }
