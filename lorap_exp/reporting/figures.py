"""Scores against size and speed: one mark for each row of the table, and the Pareto front."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from lorap_exp.reporting.drawing import INK, Chart, explain, look, write_grid
from lorap_exp.reporting.front import front
from lorap_exp.reporting.labels import word
from lorap_exp.reporting.result import Result
from lorap_exp.reporting.table import SIZE, YARDSTICKS

TIME = "evaluation time, µs/token"
"""Of the perplexity evaluation, as the clock saw it: other load on the machine is inside."""
SPEED = "speed x, "
FRONT = "Pareto front"
NARROW, WIDE = 4.0, 300.0
"""Largest over smallest perplexity up to which every tick of the axis has its number, and up to
which 2 and 5 have theirs between powers of ten."""


@dataclass(frozen=True)
class Cost:
    """What a score stands against; `better` says which end of it is, where there is a front."""

    column: str
    name: str
    better: Literal["less", "more"] | None = None


COSTS = (
    Cost("ratio", "ratio removed"),
    Cost("params (M)", "parameters, millions", "less"),
    Cost(SIZE, "weights on disk, MiB", "less"),
    Cost(TIME, TIME),
)


def evaluation_time(result: Result) -> dict[str, float]:
    """Microseconds for each scored token of the perplexity texts."""
    tokens = sum(score.tokens for score in result.scores.perplexity)
    seconds = sum(score.seconds for score in result.scores.perplexity)
    return {TIME: 1e6 * seconds / tokens} if tokens else {}


def plot_sweep(table: pd.DataFrame, perplexities: Sequence[str], title: str, path: Path) -> None:
    """`report.png`: a row for each cost, a column for each score; none where nothing was scored."""
    charts = score_charts(table, perplexities)
    if not charts:
        path.unlink(missing_ok=True)
        return
    write_grid(charts, len(scores(table, perplexities)), title, path)


def score_charts(table: pd.DataFrame, perplexities: Sequence[str]) -> list[Chart]:
    """A chart for each cost, row by row, and each score that have numbers."""
    table = _beside_itself(table.dropna(subset=["kept"]))
    charts = []
    for cost in [*COSTS, *_speeds(table)]:
        for score in scores(table, perplexities):
            if cost.column in table.columns and _finite(table, cost.column, score).size:
                draw = partial(
                    draw_scores, table=table, score=score, cost=cost, log=score in perplexities
                )
                charts.append(Chart(_title(score, score in perplexities), draw))
    return charts


def scores(table: pd.DataFrame, perplexities: Sequence[str]) -> list[str]:
    """What is drawn: perplexities, and the mean accuracy by the paper's metrics."""
    return [*perplexities, *(name for name in table.columns if name.endswith("_paper"))]


def draw_scores(axes: Axes, *, table: pd.DataFrame, score: str, cost: Cost, log: bool) -> None:
    """A line for each method and setting, its marks with error bars, and the front."""
    if log:
        axes.set_yscale("log")
    for number, (label, rows, path) in enumerate(lines(table)):
        colour, marker = look(number)
        through = _finite(path, cost.column, score)
        (line,) = axes.plot(through[cost.column], through[score], color=colour, linewidth=1.2)
        explain(line, series=label)
        own = _finite(rows, cost.column, score)
        (marks,) = axes.plot(
            own[cost.column], own[score], marker, color=colour, markersize=4, label=label
        )
        titles = [_numbers(row, label, score, cost) for row in own.to_dict("records")]
        explain(marks, titles, label)
        _whiskers(axes, own, score, cost, colour, label)
    _front(axes, table, score, cost, log)
    axes.set_xlabel(cost.name)
    if log:
        _plain_numbers(axes)


def lines(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """(label, rows, rows of the line): dense rows alone, then each setting, led by its dense row.

    Labels name only what differs between the lines.
    """
    after = list(table.columns).index("method") + 1
    settings = [*table.columns[after : list(table.columns).index("ratio")]]
    compressed = table[table["method"] != "dense"]
    several = table["model"].nunique() > 1
    settings = [name for name in settings if compressed[name].nunique() > 1]
    for model, rows in table.groupby("model", sort=False):
        dense, others = rows[rows["method"] == "dense"], rows[rows["method"] != "dense"]
        prefix = f"{model}, " if several else ""
        if not dense.empty:
            yield f"{prefix}dense", dense, dense.iloc[:0]
        for keys, found in others.groupby(["method", *settings], sort=False):
            values = [f"{word(n)} {v}" for n, v in zip(settings, keys[1:], strict=True)]
            path = pd.concat([dense, found]).sort_values("ratio")
            yield prefix + ", ".join([str(keys[0]), *values]), found, path


def best_of(table: pd.DataFrame, score: str, cost: Cost, low: bool) -> Iterator[pd.DataFrame]:
    """The front among rows of one model that were scored alike; `low`: a lower score is better."""
    alike = ["model", *(name for name in table.columns if name.startswith(YARDSTICKS))]
    for _, rows in _finite(table, cost.column, score).groupby(alike, sort=False):
        costs = rows[cost.column] * (-1 if cost.better == "more" else 1)
        losses = rows[score] * (1 if low else -1)
        yield rows.iloc[front(list(zip(costs, losses, strict=True)))].sort_values(cost.column)


def _front(axes: Axes, table: pd.DataFrame, score: str, cost: Cost, low: bool) -> None:
    """A step line: at a cost, the best score that it buys."""
    if cost.better is None:
        return
    where: Literal["pre", "post"] = "post" if cost.better == "less" else "pre"
    for rows in best_of(table, score, cost, low):
        (line,) = axes.step(
            rows[cost.column], rows[score], ":", where=where, color=INK, linewidth=1, label=FRONT
        )
        explain(line, series=FRONT)


def _whiskers(
    axes: Axes, rows: pd.DataFrame, score: str, cost: Cost, colour: str, label: str
) -> None:
    errors: dict[str, Any] = {
        key: rows[f"{name} ±"]
        for key, name in (("xerr", cost.column), ("yerr", score))
        if f"{name} ±" in rows.columns
    }
    if rows.empty or not errors:
        return
    style: dict[str, Any] = {"fmt": "none", "ecolor": colour, "elinewidth": 1, "capsize": 2}
    _, caps, bars = axes.errorbar(rows[cost.column], rows[score], **errors, **style)
    for artist in (*caps, *bars):
        explain(artist, series=label)


def _speeds(table: pd.DataFrame) -> list[Cost]:
    """Of prefill, and of decoding at the smallest batch."""
    names = [name.removeprefix(SPEED) for name in table.columns if name.startswith(SPEED)]
    names = [name for name in names if not name.endswith(" ±")]
    decoding = [name for name in names if name.startswith("decode")][:1]
    chosen = [name for name in names if name == "prefill"] + decoding
    return [Cost(SPEED + name, f"speed of {name} over dense", "more") for name in chosen]


def _beside_itself(table: pd.DataFrame) -> pd.DataFrame:
    """The table, in which the dense model is as fast as itself."""
    speeds = [name for name in table.columns if name.startswith(SPEED) and "±" not in name]
    filled = table[speeds].where(table["method"] != "dense", 1.0)
    return table.assign(**{name: filled[name] for name in speeds})


def _finite(rows: pd.DataFrame, *columns: str) -> pd.DataFrame:
    values = rows[list(columns)].to_numpy(float)
    return rows.loc[np.isfinite(values).all(axis=1)]


def _title(score: str, perplexity: bool) -> str:
    if perplexity:
        return f"perplexity, {score} (lower is better)"
    return f"{score}, % (higher is better)"


def _numbers(row: Mapping[Any, Any], label: str, score: str, cost: Cost) -> str:
    error = row.get(f"{score} ±", np.nan)
    spread = f" ± {error:.2f}" if np.isfinite(error) else ""
    return (
        f"{label}\nratio {row['ratio']:.3g}, kept {row['kept']:.3f}\n"
        f"{score} {row[score]:.2f}{spread}\n{cost.name} {row[cost.column]:.4g}"
    )


def _plain_numbers(axes: Axes) -> None:
    """100 and 1000, not powers, and as many numbers between them as there is room for."""
    low, high = axes.get_ylim()
    leading = "123456789" if high / low < NARROW else "25" if high / low < WIDE else ""

    def between(value: float, _: object) -> str:
        return f"{value:g}" if f"{value:e}"[0] in leading else ""

    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(between))
