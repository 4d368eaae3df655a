"""The table in LaTeX, ready for a paper: booktabs rules, one block for each model and ratio."""

from collections.abc import Sequence

import pandas as pd

from lorap_exp.reporting.best import Cells
from lorap_exp.reporting.text import Cell, shown

ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "[": "{[}",
        "]": "{]}",
        "*": "{*}",
    }
    | {character: f"\\{character}" for character in "&%$#_{}"}
)


GROUP = ("model", "ratio")
"""Columns that a rule separates."""


def latex(table: pd.DataFrame, best: Cells, title: str) -> str:
    """A table* environment; every row has as many cells as there are columns."""
    columns, rows = shown(table, best)
    words = [_is_words(column) for column in zip(*rows, strict=True)]
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table*}[t]",
        r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escape(title)}}}",
        rf"\begin{{tabular}}{{{''.join('l' if word else 'r' for word in words)}}}",
        r"\toprule",
        _row([escape(name) for name in columns]),
    ]
    group = None
    for row in rows:
        head = [cell.text for name, cell in zip(columns, row, strict=True) if name in GROUP]
        lines += [r"\midrule"] if head != group else []
        lines.append(_row([_cell(cell) for cell in row]))
        group = head
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table*}", ""])


def escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line.translate(ESCAPES)


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _is_words(column: Sequence[Cell]) -> bool:
    texts = [cell.text for cell in column if cell.value is None]
    return len(texts) == len(column) and set(texts) != {"-"}


def _cell(cell: Cell) -> str:
    text = "--" if cell.text == "-" else escape(cell.text)
    text = rf"\textbf{{{text}}}" if cell.best else text
    return text + (rf" $\pm$ {cell.error}" if cell.error else "")
