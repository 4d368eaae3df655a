"""`python -m lorap_exp.report outputs/<sweep>`: the table and the plot of a sweep, from disk."""

import sys
from pathlib import Path

from lorap_exp.reporting.sweep import collect, write_report


def show(folder: Path) -> str:
    """Write the report of a sweep; return its table and where it lies."""
    text = write_report(collect(folder))
    return f"{text}\n\nreport: {folder}/report.md, report.csv, report.png"


if __name__ == "__main__":
    from lorap_exp.cli import command

    command("report", sys.argv[1:])
