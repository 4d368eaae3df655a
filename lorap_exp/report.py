"""`python -m lorap_exp.report outputs/<sweep> …`: table, plots and page of sweeps, from disk."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lorap_exp.reporting.sweep import Sweep, collect, write_report
from lorap_exp.reporting.tracking import log_sweep


def show(folders: Sequence[Path], output: Path | None = None) -> str:
    """Write one report over all jobs of the folders; return its table and where it lies.

    Args:
        folders: sweeps.
        output: where the report goes; the first folder when it is None.
    """
    return _write(collect(*folders), output or folders[0])


def main(arguments: Sequence[str]) -> str:
    """The command `report`: what it prints."""
    parser = argparse.ArgumentParser("lorap_exp report", description=__doc__)
    parser.add_argument("sweep", nargs="+", type=Path, help="a folder of jobs")
    parser.add_argument("--output", type=Path, help="default: the first folder")
    parser.add_argument("--wandb", choices=("offline", "online"), help="log the report as a run")
    parser.add_argument("--project", default="lorap_exp", help="of the W&B run")
    given = parser.parse_args(arguments)
    output = given.output or given.sweep[0]
    sweep = collect(*given.sweep)
    text = _write(sweep, output)
    if given.wandb is not None:
        plots = {"report": output / "report.png"}
        plots |= {f"{job.name}/spectra": job.folder / "spectra.png" for job in sweep.jobs}
        found = {name: path for name, path in plots.items() if path.is_file()}
        log_sweep(
            sweep.title, sweep.table(), found, output, mode=given.wandb, project=given.project
        )
    return text


def _write(sweep: Sweep, output: Path) -> str:
    text = write_report(sweep, output)
    written = ", ".join(path.name for path in sorted(output.glob("report.*")))
    return f"{text}\n\nreport in {output}: {written}"


if __name__ == "__main__":
    from lorap_exp.cli import command

    command("report", sys.argv[1:])
