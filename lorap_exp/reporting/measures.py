"""Spectra, training curves and costs of the jobs, as charts of the page."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from lorap_exp.reporting.charts import bars
from lorap_exp.reporting.result import Result
from lorap_exp.reporting.svg import Point, Series, line_chart

STEPS = 300
"""Points of a training curve; a longer one is averaged over equal runs of steps."""


def spectrum_charts(spectra: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """For each metric, the energy kept against the rank: one curve for each matrix, the mean over
    layers."""
    charts = []
    for metric in dict.fromkeys(s["metric"] for s in spectra):
        curves: dict[str, list[list[float]]] = {}
        for spectrum in spectra:
            if spectrum["metric"] == metric:
                curves.setdefault(spectrum["matrix"], []).append(spectrum["cumulative"])
        series = []
        for style, (matrix, found) in enumerate(curves.items()):
            means = [statistics.fmean(values) for values in zip(*found, strict=True)]
            points = [Point(i / (len(means) - 1), mean) for i, mean in enumerate(means)]
            series.append(Series(matrix, style, points, marks=False))
        charts.append(
            line_chart(
                series, title=f"{metric}: energy kept", x_label="rank / full rank", legend=True
            )
        )
    return charts


def training_chart(name: str, curve: Mapping[str, Any]) -> Markup:
    """Training loss as a line, validation losses as marks."""
    train = list(curve.get("train", []))
    run = max(1, -(-len(train) // STEPS))
    means = [
        Point(start + (min(run, len(train) - start) - 1) / 2, statistics.fmean(train[start:][:run]))
        for start in range(0, len(train), run)
    ]
    marks = [
        Point(step, loss, f"step {step}: validation loss {loss:.4f}")
        for step, loss in curve.get("validation", [])
    ]
    series = [Series("training", 0, means, marks=False), Series("validation", 1, marks)]
    title = f"{name}: loss" if run == 1 else f"{name}: loss (training: mean of {run} steps)"
    return line_chart(
        [s for s in series if s.points], title=title, x_label="step", whole_x=True, legend=True
    )


def cost_charts(results: Mapping[str, Result]) -> tuple[list[Markup], list[str]]:
    """Seconds (stacked) and peak memory (side by side) of each job by stage; and the stages."""
    stages = list(dict.fromkeys(s for result in results.values() for s in result.seconds))
    seconds = {
        name: {
            stage: (value, f"{name}\n{stage}: {value:.1f} s")
            for stage, value in result.seconds.items()
        }
        for name, result in results.items()
    }
    memory: dict[str, dict[str, tuple[float, str]]] = {}
    for name, result in results.items():
        memory[name] = {
            key: (peak / 2**30, f"{name}\n{key}: {peak / 2**30:.2f} GiB")
            for key, peak in result.peak_memory.items()
        }
    colours = {key: key.rsplit(" ", 1)[0] for row in memory.values() for key in row}
    stages += [stage for stage in dict.fromkeys(colours.values()) if stage not in stages]
    same = {stage: stage for stage in stages}
    return [
        bars(
            seconds, {s: stages.index(v) for s, v in same.items()}, "time by stage", "seconds", True
        ),
        bars(
            memory,
            {s: stages.index(v) for s, v in colours.items()},
            "peak memory by stage",
            "GiB",
            False,
        ),
    ], stages
