"""A sweep from disk, also after failures, and every view of it: text, numbers, plots, a page."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd

from lorap_exp.data.tasks import column
from lorap_exp.reporting.best import best_cells
from lorap_exp.reporting.figures import evaluation_time, plot_sweep
from lorap_exp.reporting.html import Page, html
from lorap_exp.reporting.jobs import JobRecord, find_jobs, sweep_name, tell_models_apart
from lorap_exp.reporting.latex import latex
from lorap_exp.reporting.published import beside_published
from lorap_exp.reporting.result import Result
from lorap_exp.reporting.retained import retained
from lorap_exp.reporting.table import frame
from lorap_exp.reporting.text import columns_within, harmless, markdown, plain
from lorap_exp.workspace.files import remove_partials, replacing, write_text

NOT_COMPARABLE = (
    "Embedded data: these numbers are not comparable with the literature. Texts are Python's own "
    "documentation; questions were written for this project."
)
LEGEND = (
    "kept: share of attention and MLP weights that stayed, counted from the model; "
    "accuracies in percent, the paper's metric of each task (acc_norm for HellaSwag, ARC-c, "
    "OBQA); ± is the standard error, or the spread over seeds where `seeds` is a column."
)


@dataclass(frozen=True)
class Sweep:
    """The jobs found in one folder or several, the finished ones first."""

    folders: tuple[Path, ...]
    jobs: list[JobRecord]

    @property
    def title(self) -> str:
        return " + ".join(sweep_name(folder, self.folders) for folder in self.folders)

    @property
    def results(self) -> list[Result]:
        return [job.result for job in self.jobs if job.result is not None]

    @property
    def reasons(self) -> dict[str, str]:
        """Why there is no result, by job."""
        return {job.name: job.error for job in self.jobs if job.result is None}

    @property
    def perplexities(self) -> list[str]:
        """Labels of the perplexity texts, in the order of the table."""
        labels = [score.label for result in self.results for score in result.scores.perplexity]
        return list(dict.fromkeys(labels))

    def table(self, timed: bool = False) -> pd.DataFrame:
        """The table as numbers; `timed` adds the evaluation time."""
        unfinished = [(job.config, job.state) for job in self.jobs if job.result is None]
        sweeps = [job.sweep for job in self.jobs] if len(self.folders) > 1 else []
        further = [evaluation_time(result) for result in self.results] if timed else []
        return frame(self.results, unfinished, sweeps, further)


def collect(*folders: Path) -> Sweep:
    """Read every job below the folders.

    Raises:
        LorapError: a folder holds no job.
    """
    jobs = sorted(tell_models_apart(find_jobs(folders)), key=lambda job: job.result is None)
    return Sweep(folders, jobs)


def write_report(sweep: Sweep, output: Path | None = None) -> str:
    """Write every `report.*` into `output`, or into the first folder; return the Markdown."""
    output = output or sweep.folders[0]
    output.mkdir(parents=True, exist_ok=True)
    remove_partials(output, locked=False)
    table = sweep.table()
    best = best_cells(table, sweep.perplexities)
    others = other_tables(sweep)
    with replacing(output / "report.csv") as path:
        harmless(table).to_csv(path, index=False)
    plot_sweep(sweep.table(timed=True), sweep.perplexities, sweep.title, output / "report.png")
    lines = [f"# {plain(sweep.title)}", "", markdown(table, best)]
    for title, (compared, sources) in others.items():
        lines += [f"## {title}", "", markdown(compared)]
        lines += [f"- {source}" for source in sources] + [""]
    text = "\n".join([*lines, *notes(sweep)])
    write_text(output / "report.md", text)
    write_text(output / "report.tex", latex(table, best, sweep.title))
    write_text(output / "report.html", page(sweep, others))
    return text


def other_tables(sweep: Sweep) -> dict[str, tuple[pd.DataFrame, list[str]]]:
    """What stands below the table, by its title, with its sources."""
    others = {
        "Retained of the dense model": (retained(sweep.results), []),
        "Measured beside published": beside_published(sweep.results),
    }
    return {title: found for title, found in others.items() if not found[0].empty}


def overview(sweep: Sweep, width: int) -> str:
    """The tables for a terminal, and what must be said at once: the rest is in report.md."""
    table = sweep.table()
    best = best_cells(table, sweep.perplexities)
    lines = [sweep.title, "", columns_within(table, best, width), ""]
    for title, (compared, _) in other_tables(sweep).items():
        lines += [title, "", columns_within(compared, frozenset(), width), ""]
    said = ["* is the best of its model and ratio."] if best else []
    said += [found for found in (warning(sweep),) if found]
    said += [f"{job}: {reason}" for job, reason in sorted(sweep.reasons.items())]
    return "\n".join([*lines, *(fill(one, width, break_long_words=False) for one in said)])


def page(sweep: Sweep, others: Mapping[str, tuple[pd.DataFrame, list[str]]]) -> str:
    """The sweep as a self-contained HTML page."""
    table = sweep.table(timed=True)
    shown = Page(
        title=sweep.title,
        table=table,
        best=best_cells(table, sweep.perplexities),
        perplexities=sweep.perplexities,
        others=others,
        remarks=[LEGEND, *profiles(sweep), *levels(sweep)],
        warning=warning(sweep),
    )
    return html(shown, sweep.folders, sweep.jobs)


def notes(sweep: Sweep) -> list[str]:
    """What a reader must know beside the numbers, in Markdown."""
    lines = [f"**{found}**\n" for found in (warning(sweep),) if found]
    lines.append(f"{LEGEND}\n")
    lines += [f"- {plain(remark)}" for remark in (*profiles(sweep), *levels(sweep))]
    reasons = sorted(sweep.reasons.items())
    return lines + [f"- {plain(job)}: **{plain(reason)}**" for job, reason in reasons]


def warning(sweep: Sweep) -> str:
    """Why the numbers cannot be compared with others, or nothing."""
    return "" if all(result.comparable for result in sweep.results) else NOT_COMPARABLE


def profiles(sweep: Sweep) -> list[str]:
    """How each text was scored."""
    found: set[tuple[Any, ...]] = {
        (s.label, s.profile, s.length, s.split, s.tokens, s.sha256[:12])
        for result in sweep.results
        for s in result.scores.perplexity
    }
    return [
        f"{label}: profile {profile}, chunks of {length}, split {split}, {tokens} scored "
        f"tokens, sha256 {digest}…"
        for label, profile, length, split, tokens, digest in sorted(found)
    ]


def levels(sweep: Sweep) -> list[str]:
    """What each task's questions give without a model."""
    found = {
        (column(t.task), t.metric, t.samples, t.shots, t.chance, t.majority)
        for result in sweep.results
        for t in result.scores.tasks
        if t.chance is not None and t.majority is not None
    }
    return [
        f"{name}: {metric}, {samples} questions, {shots} shots; guessing gives "
        f"{100 * chance:.1f} %, the most frequent right answer {100 * majority:.1f} %"
        for name, metric, samples, shots, chance, majority in sorted(found)
        if chance is not None and majority is not None
    ]
