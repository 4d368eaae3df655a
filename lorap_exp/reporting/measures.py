"""Training curves and costs of the jobs, as charts."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lorap_exp.reporting.drawing import PALETTE, Chart, explain
from lorap_exp.reporting.result import Result

STEPS = 300
"""Points of a training curve; a longer one is averaged over equal runs of steps."""
LONGEST = 60
"""Characters of a job's name beside its bar."""
Rows = Mapping[str, Sequence[tuple[str, float, str]]]
"""Job -> (stage, value, text on hovering) of each of its bars."""


def training_chart(name: str, curve: Mapping[str, Any]) -> Chart:
    """Training loss as a line, validation losses as marks."""
    train, validation = list(curve.get("train", [])), list(curve.get("validation", []))
    run = max(1, -(-len(train) // STEPS))
    starts = range(0, len(train), run)
    means = [statistics.fmean(train[start:][:run]) for start in starts]
    middles = [start + (min(run, len(train) - start) - 1) / 2 for start in starts]

    def draw(axes: Axes) -> None:
        if means:
            axes.plot(middles, means, label="training")
        if validation:
            steps, losses = zip(*validation, strict=True)
            (marks,) = axes.plot(steps, losses, "s", color=PALETTE[1], markersize=4)
            marks.set_label("validation")
            explain(marks, [f"step {s}: validation loss {loss:.4f}" for s, loss in validation])
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        if means or validation:
            axes.legend()

    title = f"{name}: loss" if run == 1 else f"{name}: loss (training: mean of {run} steps)"
    return Chart(title, draw)


def cost_charts(results: Mapping[str, Result]) -> list[Chart]:
    """Seconds (stacked) and peak memory (side by side) of each job by stage."""
    seconds = {
        name: [(s, v, f"{name}\n{s}: {v:.1f} s") for s, v in result.seconds.items()]
        for name, result in results.items()
    }
    memory = {
        name: [
            (key.rsplit(" ", 1)[0], peak / 2**30, f"{name}\n{key}: {peak / 2**30:.2f} GiB")
            for key, peak in result.peak_memory.items()
        ]
        for name, result in results.items()
    }
    found = [stage for rows in (seconds, memory) for row in rows.values() for stage, *_ in row]
    stages = list(dict.fromkeys(found))
    colours = {stage: PALETTE[at % len(PALETTE)] for at, stage in enumerate(stages)}
    return [
        bars(seconds, colours, "time by stage", "seconds", stacked=True),
        bars(memory, colours, "peak memory by stage", "GiB", stacked=False),
    ]


def bars(rows: Rows, colours: Mapping[str, str], title: str, unit: str, *, stacked: bool) -> Chart:
    """Horizontal bars, stacked or one below the other; `colours` by stage."""
    most = max((len(row) for row in rows.values()), default=1)
    thick = 0.7 if stacked else 0.8 / max(most, 1)

    def draw(axes: Axes) -> None:
        named: set[str] = set()
        for at, row in enumerate(rows.values()):
            place = 0.0
            for number, (stage, value, text) in enumerate(row):
                y = at if stacked else at - 0.4 + (number + 0.5) * thick
                label = "_" if stage in named else stage
                (bar,) = axes.barh(y, value, thick, left=place, color=colours[stage], label=label)
                explain(bar, [text])
                named.add(stage)
                place += value if stacked else 0.0
        axes.set_yticks(range(len(rows)), [_shorten(name) for name in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(unit)
        axes.grid(visible=False, axis="y")
        if named:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))

    height = 0.2 if stacked else max(0.2, 0.08 * most)
    return Chart(title, draw, width=8.0, height=max(1.6, 0.7 + height * len(rows)))


def _shorten(name: str) -> str:
    """A name that fits beside a bar."""
    return name if len(name) <= LONGEST else "…" + name[1 - LONGEST :]
