"""`python -m lorap_exp.report outputs/<sweep>`: the table and the plot of a sweep, from disk."""

import argparse
import sys
from pathlib import Path

from lorap_exp.errors import LorapError
from lorap_exp.reporting.sweep import collect, write_report


def main() -> None:
    """Print the table of a sweep and say where it lies."""
    parser = argparse.ArgumentParser(prog="python -m lorap_exp.report", description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="a sweep's folder, for example outputs/quickstart"
    )
    folder = parser.parse_args().folder
    try:
        print(write_report(collect(folder)))
    except LorapError as error:
        sys.exit(f"error: {error}")
    print(f"\nreport: {folder}/report.md, report.csv, report.png")


if __name__ == "__main__":
    main()
