"""`report.html`: the whole sweep on one page that needs nothing but itself.

Python draws every plot and fills the template; the page's script sorts, filters and hides.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lorap_exp.analysis.spectra import Spectrum
from lorap_exp.errors import one_line
from lorap_exp.methods.streamline.selection import Selection
from lorap_exp.reporting.best import Cells
from lorap_exp.reporting.drawing import MARKERS, PALETTE, Chart, inline, look
from lorap_exp.reporting.figures import FRONT, lines, score_charts
from lorap_exp.reporting.jobs import JobRecord
from lorap_exp.reporting.labels import job_labels, word
from lorap_exp.reporting.layers import size_maps
from lorap_exp.reporting.measures import cost_charts, training_chart
from lorap_exp.reporting.provenance import commands, software
from lorap_exp.reporting.selection import selection_charts
from lorap_exp.reporting.spectra import spectrum_charts
from lorap_exp.reporting.text import Cell, shown
from lorap_exp.workspace.job import WRONG_SHAPE
from lorap_exp.workspace.progress import say


@dataclass(frozen=True)
class Page:
    """What the page shows beside the jobs: the table, its best cells, other tables with their
    sources by title, and remarks."""

    title: str
    table: pd.DataFrame
    best: Cells
    perplexities: Sequence[str]
    others: Mapping[str, tuple[pd.DataFrame, list[str]]]
    remarks: Sequence[str]
    warning: str


def html(page: Page, folders: Sequence[Path], jobs: Sequence[JobRecord]) -> str:
    """The page as one self-contained document; every text is escaped."""
    environment = Environment(
        loader=PackageLoader("lorap_exp.reporting", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        page=page,
        palette=PALETTE,
        jobs=jobs,
        commands={str(folder): commands(folder, _inside(folder, jobs)) for folder in folders},
        software=software(jobs),
        configs={job.name: _configuration(job) for job in jobs},
        **_of_table(page),
        **_of_jobs(jobs),
    )


def _configuration(job: JobRecord) -> str:
    return "\n".join(filter(None, [job.command, json.dumps(job.config, indent=1)]))


def _of_table(page: Page) -> dict[str, Any]:
    columns, rows = shown(page.table, page.best)
    charts = [inline(chart) for chart in score_charts(page.table, page.perplexities)]
    others = {}
    for title, (table, sources) in page.others.items():
        names, cells = shown(table)
        others[title] = (_headings(names, cells), cells, sources)
    return {
        "headings": _headings(columns, rows),
        "rows": rows,
        "others": others,
        "charts": charts,
        "legend": legend(page.table, any(FRONT in chart for chart in charts)),
    }


def _of_jobs(jobs: Sequence[JobRecord]) -> dict[str, Any]:
    labels = job_labels(jobs)
    finished = {labels[job.name]: job.result for job in jobs if job.result is not None}
    return {
        "labels": labels,
        "failed": [job for job in jobs if job.result is None],
        "maps": [(name, inline(chart, name)) for name, chart in size_maps(jobs)],
        "selections": _charts(jobs, "selection.json", _selected),
        "spectra": _charts(jobs, "spectra.json", _analysed),
        "training": _training(jobs),
        "costs": [inline(chart) for chart in cost_charts(finished)] if finished else [],
    }


def legend(table: pd.DataFrame, front: bool) -> list[tuple[str, str, str]]:
    """(label, mark, colour) of every line of the scores."""
    found = []
    for number, (label, *_) in enumerate(lines(table.dropna(subset=["kept"]))):
        colour, marker = look(number)
        found.append((label, MARKERS[marker], f"var(--c{PALETTE.index(colour)})"))
    return found + ([(FRONT, "┄", "currentColor")] if front else [])


def _selected(found: dict[str, Any]) -> list[Chart]:
    return selection_charts(Selection.restore(**found))


def _analysed(found: list[dict[str, Any]]) -> list[Chart]:
    return spectrum_charts([Spectrum(**spectrum) for spectrum in found])


def _charts(
    jobs: Sequence[JobRecord], file: str, draw: Callable[[Any], list[Chart]]
) -> list[tuple[str, list[Markup]]]:
    """The charts of every job that has the file."""
    charts = []
    for job in jobs:
        if not (found := job.read(file)):
            continue
        try:
            charts.append((job.name, [inline(chart, job.name) for chart in draw(found)]))
        except WRONG_SHAPE as error:
            say(f"  warning: '{job.folder / file}' is damaged and not drawn: {one_line(error)}")
    return charts


def _training(jobs: Sequence[JobRecord]) -> list[tuple[str, list[Markup]]]:
    """The curves of every job that trained something."""
    return [
        (
            job.name,
            [inline(training_chart(*named), job.name) for named in job.result.curves.items()],
        )
        for job in jobs
        if job.result is not None and job.result.curves
    ]


@dataclass(frozen=True)
class Heading:
    """A column on the page: its whole name, and its telling word where that is enough."""

    name: str
    word: str
    numeric: bool


def _headings(names: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[Heading]:
    words = [word(name) for name in names]
    return [
        Heading(
            name,
            words[at] if words.count(words[at]) == 1 else name,
            any(row[at].value is not None for row in rows),
        )
        for at, name in enumerate(names)
    ]


def _inside(folder: Path, jobs: Sequence[JobRecord]) -> list[JobRecord]:
    return [job for job in jobs if job.folder.is_relative_to(folder)]
