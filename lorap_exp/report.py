"""`python -m lorap_exp.report outputs/<sweep>`: the table and the plot of a sweep, from disk."""

import sys
from pathlib import Path

from lorap_exp.reporting.sweep import collect, write_report


def show(folder: Path) -> str:
    """Write the report of a sweep; return its table and where it lies."""
    text = write_report(collect(folder))
    written = ", ".join(path.name for path in sorted(folder.glob("report.*")))
    return f"{text}\n\nreport in {folder}: {written}"


if __name__ == "__main__":
    from lorap_exp.commands import run

    run(["report", *sys.argv[1:]])
