"""Which cells of the table are best: the one rule behind every bold number.

Rows compete inside a group of the same model and ratio, scored in the same way; lower perplexities
and higher accuracies win.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from lorap_exp.reporting.table import NEXT_WORD, TASK_COLUMNS, YARDSTICKS

Cells = frozenset[tuple[int, str]]
"""(row number, column) of cells."""


def best_cells(table: pd.DataFrame, perplexities: Sequence[str]) -> Cells:
    """The best cells of a table of `frame`, ties at two decimals included.

    Dense rows never compete. Nothing is best among fewer than two numbers, or where all are equal.
    """
    compressed = table.reset_index(drop=True).query("method != 'dense'")
    yardstick = [name for name in compressed.columns if name.startswith(YARDSTICKS)]
    accuracies = [name for name in compressed.columns if is_accuracy(name)]
    found = set()
    for _, group in compressed.groupby(["model", "ratio", *yardstick]):
        for names, pick in ((perplexities, min), (accuracies, max)):
            for name in names:
                found |= {(row, name) for row in _winners(group[name].dropna().round(2), pick)}
    return frozenset(found)


def is_accuracy(column: str) -> bool:
    """Whether a column holds percentages of right or unchanged answers, of a task or their mean."""
    means = column.startswith(("mean", "stability", "agreement")) and "±" not in column
    return column in (*TASK_COLUMNS.values(), NEXT_WORD) or means


def _winners(numbers: "pd.Series[float]", pick: Any) -> list[int]:
    if numbers.nunique() < 2:
        return []
    return list(numbers.index[numbers == pick(numbers)])
