"""What the charts of the scores show."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorap_exp.reporting.drawing import Chart, inline
from lorap_exp.reporting.figures import FRONT, plot_sweep, score_charts
from lorap_exp.reporting.result import Result
from lorap_exp.reporting.sweep import collect
from lorap_exp.reporting.table import SIZE, frame

TEXT, MEAN = "WikiText-2", "mean1_paper"


def draw(chart: Chart) -> Axes:
    figure = Figure()
    axes = figure.add_subplot()
    chart.draw(axes)
    figure.canvas.draw()
    return axes


def charts(table: pd.DataFrame) -> dict[tuple[str, str], Axes]:
    """(name of the x axis, score) -> the chart, drawn."""
    drawn = [(chart, draw(chart)) for chart in score_charts(table, [TEXT])]
    return {
        (axes.get_xlabel(), TEXT if TEXT in chart.title else MEAN): axes for chart, axes in drawn
    }


def points(axes: Axes, label: str) -> list[tuple[float, float]]:
    (line,) = (line for line in axes.lines if line.get_label() == label)
    return [tuple(point) for point in np.asarray(line.get_xydata()).tolist()]


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    base = {"model": "m", "method": "lorap", "ratio": 0.2, "kept": 0.8, "params (M)": 8.0}
    return pd.DataFrame([base | row for row in rows])


ROWS = [
    {"method": "dense", "ratio": 0.0, "kept": 1.0, "params (M)": 10.0, TEXT: 10.0},
    {"method": "a", "ratio": 0.2, TEXT: 20.0},
    {"method": "b", "ratio": 0.2, TEXT: 30.0},
    {"method": "b", "ratio": 0.5, "params (M)": 5.0, TEXT: 400.0},
]


def test_every_score_stands_against_every_cost(sweep: Path) -> None:
    found = collect(sweep)
    drawn = charts(found.table(timed=True))
    costs = ["ratio removed", "parameters, millions", "weights on disk, MiB"]
    costs.append("evaluation time, µs/token")
    assert list(drawn) == [(cost, score) for cost in costs for score in (TEXT, MEAN)]
    for (_, score), axes in drawn.items():
        assert axes.get_yscale() == ("log" if score == TEXT else "linear")
    by_ratio = drawn["ratio removed", TEXT]
    assert points(by_ratio, "lorap") == [(0.2, 100), (0.5, 40)]
    assert points(by_ratio, "dense") == [(0, 10)]


def test_numbers_of_a_logarithmic_axis_are_plain() -> None:
    for values in ((10, 20, 30, 400), (5.4, 5.5, 5.6, 5.9), (10, 1e3, 1e5, 1e8)):
        rows = [row | {TEXT: value} for row, value in zip(ROWS, values, strict=True)]
        axes = charts(table(rows))["ratio removed", TEXT]
        ticks = [*axes.get_yticklabels(), *axes.get_yticklabels(minor=True)]
        low, high = axes.get_ylim()
        shown = [t.get_text() for t in ticks if low <= t.get_position()[1] <= high]
        numbers = [float(text) for text in shown if text]
        assert 2 <= len(numbers) <= 12 and not any("$" in text for text in shown)
    assert numbers[0] >= 1 and all(math.log10(number) % 1 == 0 for number in numbers)


def test_several_seeds_have_error_bars(make: Callable[..., Result]) -> None:
    seeds = [make("a", 0.2, perplexity=p, seed=s) for s, p in enumerate((20.0, 22.0, 24.0))]
    found = frame([make("dense", 0.0, 10.0), *seeds])
    axes = charts(found)["ratio removed", TEXT]
    ends = [
        segment[:, 1].tolist()
        for bars in axes.collections
        for segment in bars.get_segments()  # type: ignore[attr-defined]
        if np.ndim(segment) == 2
    ]
    assert ends == [[pytest.approx(20.0), pytest.approx(24.0)]]
    assert points(axes, "a") == [pytest.approx((0.2, 22.0))]


def test_the_front_is_a_step_through_the_best() -> None:
    """At a size the best perplexity that it buys; the dense model is on it."""
    axes = charts(table(ROWS))["parameters, millions", TEXT]
    assert points(axes, FRONT) == [(5, 400), (8, 20), (10, 10)]
    (line,) = (line for line in axes.lines if line.get_label() == FRONT)
    assert line.get_drawstyle() == "steps-post"
    assert FRONT not in [
        line.get_label() for line in charts(table(ROWS))["ratio removed", TEXT].lines
    ]


def test_faster_is_better_on_an_axis_of_speed() -> None:
    speeds = [math.nan, 1.5, 1.2, 2.0]
    rows = [row | {"speed x, decode x1": s} for row, s in zip(ROWS, speeds, strict=True)]
    axes = charts(table(rows))["speed of decode x1 over dense", TEXT]
    assert points(axes, "dense") == [(1, 10)], "as fast as itself"
    assert points(axes, FRONT) == [(1, 10), (1.5, 20), (2, 400)]
    (line,) = (line for line in axes.lines if line.get_label() == FRONT)
    assert line.get_drawstyle() == "steps-pre"


def test_models_and_yardsticks_have_fronts_of_their_own() -> None:
    rows = [row | {"model": model} for model in ("m", "n") for row in ROWS]
    axes = charts(table(rows))["parameters, millions", TEXT]
    assert [line.get_label() for line in axes.lines].count(FRONT) == 2


def test_bytes_on_disk_have_a_chart_where_they_are_known() -> None:
    assert not [key for key in charts(table(ROWS)) if "MiB" in key[0]]
    rows = [row | {SIZE: 2 * row.get("params (M)", 8.0)} for row in ROWS]
    axes = charts(table(rows))["weights on disk, MiB", TEXT]
    assert points(axes, FRONT) == [(10, 400), (16, 20), (20, 10)]


def test_what_is_no_number_is_left_out() -> None:
    rows = [
        row | {TEXT: value} for row, value in zip(ROWS, (10, math.inf, math.nan, 30), strict=True)
    ]
    axes = charts(table(rows))["ratio removed", TEXT]
    assert points(axes, "a") == [] and points(axes, "b") == [(0.5, 30)]


def test_marks_say_their_exact_numbers(sweep: Path) -> None:
    found = collect(sweep)
    text = inline(score_charts(found.table(timed=True), found.perplexities)[0])
    assert "lorap\nratio 0.2, kept 0.800\nWikiText-2 100.00\nratio removed 0.2" in text


def test_no_scores_no_image(tmp_path: Path) -> None:
    path = tmp_path / "report.png"
    path.touch()
    plot_sweep(table([{"kept": math.nan}]), [], "t", path)
    assert not path.exists()
