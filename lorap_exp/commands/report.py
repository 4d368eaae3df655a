"""`python -m lorap_exp report outputs/<sweep> …`: table, plots and page of sweeps, from disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lorap_exp.reporting.sweep import Sweep, collect, overview, write_report
from lorap_exp.reporting.tracking import log_sweep
from lorap_exp.workspace.files import is_partial

PLOTS = ("spectra", "selection")
"""Images that a job may hold."""
WIDTH = 100
"""Columns of a terminal."""


def show(
    folders: Sequence[Path],
    output: Path | None = None,
    wandb: Literal["offline", "online"] | None = None,
    project: str = "lorap_exp",
) -> str:
    """Write one report over all jobs of the folders; return its tables, and where it lies.

    Args:
        folders: sweeps.
        output: where the report goes; the first folder when it is None.
        wandb: log the report as a run too.
        project: of that run.
    """
    output = output or folders[0]
    sweep = collect(*folders)
    write_report(sweep, output)
    written = ", ".join(
        path.name for path in sorted(output.glob("report.*")) if not is_partial(path)
    )
    if wandb is not None:
        plots = find_plots(sweep, output)
        log_sweep(sweep.title, sweep.table(), plots, output, mode=wandb, project=project)
    return (
        f"{overview(sweep, WIDTH)}\n\nreport in {output}: {written}\n"
        f"How each number was scored is said in {output / 'report.md'}\n"
        f"Next: open {output / 'report.html'} in a browser\n"
        f"      `python -m lorap_exp info <job>` says what was done to each layer\n"
        f"      `python -m lorap_exp --help` lists what can be composed"
    )


def find_plots(sweep: Sweep, output: Path) -> dict[str, Path]:
    """The report's plot and those of its jobs, by name, where they are."""
    plots = {"report": output / "report.png"}
    plots |= {f"{job.name}/{n}": job.folder / f"{n}.png" for job in sweep.jobs for n in PLOTS}
    return {name: path for name, path in plots.items() if path.is_file()}
