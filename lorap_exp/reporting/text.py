"""The table as people read it: two decimals, errors beside their values, the best in bold."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lorap_exp.reporting.best import Cells

DIGITS = {"ratio": 3, "kept": 3, "seeds": 0}
"""Decimals, where they are not two."""


@dataclass(frozen=True)
class Cell:
    """A word or a number as shown; `value` is the number, `error` what follows the ±."""

    text: str
    value: float | None = None
    error: str | None = None
    best: bool = False


def shown(table: pd.DataFrame, best: Cells = frozenset()) -> tuple[list[str], list[list[Cell]]]:
    """Columns and rows for people; a column `x ±` goes into the cells of `x`."""
    columns = [name for name in table.columns if not name.endswith(" ±")]
    rows = [
        [_cell(row, name, (position, name) in best) for name in columns]
        for position, row in enumerate(table.to_dict("records"))
    ]
    return columns, rows


def markdown(table: pd.DataFrame, best: Cells = frozenset()) -> str:
    """The table in Markdown, a dash where there is no number."""
    columns, rows = shown(table, best)
    lines = [_line([plain(name) for name in columns]), "|" + " --- |" * len(columns)]
    return "\n".join([*lines, *(_line([_markdown(cell) for cell in row]) for row in rows)]) + "\n"


def columns_within(table: pd.DataFrame, best: Cells, width: int) -> str:
    """The table in columns for a terminal; those that do not fit stand below, beside the same keys.

    The keys are the columns up to the ratio; a star marks what is best.
    """
    names, rows = shown(table, best)
    grid = [names, *([_typed(cell) for cell in row] for row in rows)]
    wide = [max(len(line[at]) for line in grid) for at in range(len(names))]
    keys = range(names.index("ratio") + 1)
    parts: list[list[int]] = [[]]
    for at in range(len(keys), len(names)):
        used = sum(wide[one] + 2 for one in (*keys, *parts[-1]))
        if parts[-1] and used + wide[at] > width:
            parts.append([])
        parts[-1].append(at)
    blocks = [
        "\n".join(
            "  ".join(line[at].ljust(wide[at]) for at in (*keys, *part)).rstrip() for line in grid
        )
        for part in parts
    ]
    return "\n\n".join(blocks)


MARKS = re.compile(r"[\\`*|]|~~|(?<=\])\(|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
"""What Markdown takes for more than a character; an underscore inside a word is one."""


def plain(text: str) -> str:
    """Text that Markdown shows as it is: on one line, without HTML, emphasis or links."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return MARKS.sub(lambda found: "".join(f"\\{c}" for c in found[0]), line)


def harmless(table: pd.DataFrame) -> pd.DataFrame:
    """The table for a spreadsheet: no text in it is taken for a formula."""
    return table.map(lambda cell: f"'{cell}" if _is_formula(cell) else cell)


def _is_formula(cell: Any) -> bool:
    return isinstance(cell, str) and len(cell) > 1 and cell[0] in "=+-@\t\r"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown(cell: Cell) -> str:
    text = plain(cell.text) + (f" ± {cell.error}" if cell.error else "")
    return f"**{text}**" if cell.best else text


def _typed(cell: Cell) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in cell.text).split())
    return line + (f" ± {cell.error}" if cell.error else "") + ("*" if cell.best else "")


def _cell(row: dict[Any, Any], name: str, best: bool) -> Cell:
    value = row[name]
    if isinstance(value, str):
        return Cell(value)
    if pd.isna(value):
        return Cell("-")
    error = row.get(f"{name} ±")
    spread = None if pd.isna(error) else _number(name, error)  # one seed has none
    return Cell(_number(name, value), float(value), spread, best)


def _number(name: str, value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.{DIGITS.get(name, 2)}f}"
