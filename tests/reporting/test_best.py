import math

import pandas as pd

from lorap_exp.reporting.best import best_cells
from lorap_exp.reporting.text import markdown


def table(*rows: tuple[str, float, float, float], **more: list[str]) -> pd.DataFrame:
    found = pd.DataFrame(rows, columns=["method", "ratio", "text", "BoolQ"])
    return found.assign(model="m", **more)


def test_lower_perplexities_and_higher_accuracies_win_inside_their_group() -> None:
    rows = table(
        ("dense", 0.2, 1.0, 99.0), ("a", 0.2, 20.0, 50.0), ("b", 0.2, 30.0, 60.0),
        ("a", 0.5, 40.0, 40.0), ("b", 0.5, math.nan, 30.0),
    )  # fmt: skip
    assert best_cells(rows, ["text"]) == {(1, "text"), (2, "BoolQ"), (3, "BoolQ")}


def test_one_row_alone_or_equal_rows_are_not_best() -> None:
    assert not best_cells(table(("a", 0.2, 1.0, 1.0), ("a", 0.5, 1.0, 1.0)), ["text"])
    assert not best_cells(table(("a", 0.2, 1.0, 1.0), ("b", 0.2, 1.0, 1.0)), ["text"])


def test_ties_at_the_shown_decimals_share_the_first_place() -> None:
    rows = table(("a", 0.2, 1.001, 1.0), ("b", 0.2, 1.002, 1.0), ("c", 0.2, 2.0, 1.0))
    assert best_cells(rows, ["text"]) == {(0, "text"), (1, "text")}


def test_rows_scored_in_another_way_do_not_compete() -> None:
    pair = (("a", 0.2, 1.0, 1.0), ("b", 0.2, 2.0, 2.0))
    profiles = {"evaluation.perplexity.profile": ["lorap", "asvd"]}
    assert best_cells(table(*pair), ["text"])
    assert not best_cells(table(*pair, **profiles), ["text"])


def test_markdown_has_them_in_bold_with_their_error() -> None:
    rows = pd.DataFrame({"method": ["a|b", "c"], "x": [1.234, math.nan], "x ±": [0.5, math.nan]})
    lines = markdown(rows, frozenset({(0, "x")})).splitlines()
    assert lines[2:] == ["| a\\|b | **1.23 ± 0.50** |", "| c | - |"]
