"""Scores against size and time, as charts of the page: one mark for each row of the table."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from lorap_exp.reporting.labels import word
from lorap_exp.reporting.result import Result
from lorap_exp.reporting.svg import Point, Series, line_chart, mark
from lorap_exp.reporting.table import SIZE

TIME = "evaluation time, µs/token"
"""Of the perplexity evaluation, as the clock saw it: other load on the machine is inside."""
AXES = {
    "ratio": "ratio removed",
    "params (M)": "parameters, millions",
    SIZE: "weights on disk, MiB",
    TIME: TIME,
}


def evaluation_time(result: Result) -> dict[str, float]:
    """Microseconds for each scored token of the perplexity texts."""
    tokens = sum(score.tokens for score in result.scores.perplexity)
    seconds = sum(score.seconds for score in result.scores.perplexity)
    return {TIME: 1e6 * seconds / tokens} if tokens else {}


def score_charts(
    table: pd.DataFrame, perplexities: Sequence[str]
) -> tuple[list[Markup], list[Any]]:
    """A chart for each score and each of ratio, parameters, bytes and time; and the legend.

    The legend is a list of (label, style, path of the mark).
    """
    means = [name for name in table.columns if name.endswith("_paper")]
    named = list(lines(table.dropna(subset=["kept"])))
    charts = []
    for score in [*perplexities, *means]:
        perplexity = score in perplexities
        title = f"perplexity, {score}" if perplexity else f"{score}, %"
        title += " (lower is better)" if perplexity else " (higher is better)"
        for column, name in AXES.items():
            if column in table.columns:
                series = [
                    _series(found, path, score, column, (text, style))
                    for style, (text, found, path) in enumerate(named)
                ]
                charts.append(line_chart(series, title=title, x_label=name, log_y=perplexity))
    return charts, [(text, style, mark(style)) for style, (text, _, _) in enumerate(named)]


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


def _series(
    rows: pd.DataFrame, path: pd.DataFrame, score: str, column: str, look: tuple[str, int]
) -> Series:
    text, style = look
    points = [_point(row, score, column, text) for row in _complete(rows, score, column)]
    line = [_point(row, score, column, text) for row in _complete(path, score, column)]
    return Series(text, style, points, line)


def _complete(rows: pd.DataFrame, *columns: str) -> list[dict[Any, Any]]:
    return rows.dropna(subset=list(columns)).to_dict("records")


def _point(row: Mapping[Any, Any], score: str, column: str, text: str) -> Point:
    error = float(row.get(f"{score} ±", math.nan))
    spread = f" ± {error:.2f}" if math.isfinite(error) else ""
    title = (
        f"{text}\nratio {row['ratio']:.3g}, kept {row['kept']:.3f}\n"
        f"{score} {row[score]:.2f}{spread}\n{AXES[column]} {row[column]:.4g}"
    )
    return Point(row[column], row[score], title, error)
