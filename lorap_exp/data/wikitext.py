"""WikiText-2 raw: from lines to the hub's rows, and from rows to articles."""

import re
from collections.abc import Iterable, Sequence


def rows_of_lines(lines: Iterable[str]) -> list[str]:
    """The hub's rows of a raw file's lines: each with its newline, blank ones empty."""
    return [line + "\n" if line.strip() else "" for line in lines]


def lines_of_rows(rows: Iterable[str]) -> list[str]:
    """The raw file's lines of the hub's rows: the inverse of `rows_of_lines`."""
    return [row.removesuffix("\n") or " " for row in rows]


def articles(rows: Sequence[str]) -> list[str]:
    """Rows grouped into articles at their top-level headings ` = Title = `.

    A heading stands between blank rows, unlike the ` = Wins , L = ` of a broken-up table: with
    that, the splits hold the documented 600, 60 and 60 articles.
    """
    found: list[list[str]] = [[]]
    for before, row, after in zip(["", *rows], rows, [*rows[1:], ""], strict=False):
        alone = not before.strip() and not after.strip()
        if alone and re.fullmatch(r" = [^=].*[^=] = \n?", row):
            found.append([])
        found[-1].append(row)
    return ["".join(article) for article in found if any(row.strip() for row in article)]
