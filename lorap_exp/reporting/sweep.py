"""Collecting a sweep from disk, also after failures, and writing its report."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorap_exp.errors import LorapError
from lorap_exp.job import read_status
from lorap_exp.reporting.plots import plot_sweep
from lorap_exp.reporting.published import beside_published
from lorap_exp.reporting.result import Result
from lorap_exp.reporting.table import frame, markdown

NOT_COMPARABLE = (
    "Embedded data: these numbers are not comparable with the literature. Texts are Python's own "
    "documentation; questions were written for this project."
)


@dataclass(frozen=True)
class Sweep:
    """The jobs found in a folder: finished ones, and (configuration, state) of the others."""

    folder: Path
    results: list[Result]
    unfinished: list[tuple[dict[str, Any], str]]
    reasons: dict[str, str]


def collect(folder: Path) -> Sweep:
    """Read every job below `folder`.

    Raises:
        LorapError: there is no job.
    """
    results, unfinished, reasons = [], [], {}
    for path in sorted(folder.glob("**/config.json")):
        job = path.parent
        if not (job / "status.json").is_file():
            continue
        status = read_status(job)
        assert status is not None
        if (job / "result.json").is_file():
            results.append(Result.from_dict(json.loads((job / "result.json").read_text())))
            continue
        config = json.loads(path.read_text())
        state = "failed" if status["state"] in ("failed", "cut") else "missing"
        unfinished.append((config, state))
        reasons[str(job.relative_to(folder))] = status.get("error") or "not finished"
    if not results and not unfinished:
        raise LorapError(f"a sweep folder holds jobs with config.json, got '{folder}'")
    return Sweep(folder, results, unfinished, reasons)


def write_report(sweep: Sweep) -> str:
    """Write report.md, report.csv and report.png into the sweep's folder; return the Markdown."""
    table = frame(sweep.results, sweep.unfinished)
    perplexities = list(
        dict.fromkeys(s.label for result in sweep.results for s in result.scores.perplexity)
    )
    table.to_csv(sweep.folder / "report.csv", index=False)
    plot_sweep(table, perplexities, sweep.folder.name, sweep.folder / "report.png")
    lines = [f"# {sweep.folder.name}", "", markdown(table)]
    compared, sources = beside_published(sweep.results)
    if not compared.empty:
        lines += ["## Measured beside published", "", markdown(compared)]
        lines += [f"- {source}" for source in sources] + [""]
    text = "\n".join([*lines, *notes(sweep)])
    (sweep.folder / "report.md").write_text(text, encoding="utf-8")
    return text


def notes(sweep: Sweep) -> list[str]:
    """What a reader must know beside the numbers."""
    lines = []
    if any(not result.comparable for result in sweep.results):
        lines.append(f"**{NOT_COMPARABLE}**\n")
    lines.append(
        "kept: share of attention and MLP weights that stayed, counted from the model; "
        "accuracies in percent, the paper's metric of each task (acc_norm for HellaSwag, ARC-c, "
        "OBQA); ± is the standard error, or the spread over seeds where `seeds` is a column.\n"
    )
    profiles = {
        (s.label, s.profile, s.length, s.split, s.tokens, s.sha256[:12])
        for result in sweep.results
        for s in result.scores.perplexity
    }
    lines += [
        f"- {label}: profile {profile}, chunks of {length}, split {split}, {tokens} scored "
        f"tokens, sha256 {digest}…"
        for label, profile, length, split, tokens, digest in sorted(profiles)
    ]
    lines += [f"- {job}: **{reason}**" for job, reason in sorted(sweep.reasons.items())]
    return lines
