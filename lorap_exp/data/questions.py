"""Whether a task's file has questions with answers: checked when data are opened, not scored at 0.

Test splits of the hub have the label -1 or an empty one; a model scored on them has 0 %.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lorap_exp.data.files import read_parquet
from lorap_exp.errors import LorapError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Questions:
    """Columns of text, the column of the answer, and the answers that a row may have.

    Attributes:
        answer: its column; lm-eval reads it as a whole number where `number`, else as text.
        holds: what every text of a column must contain, by the column.
    """

    texts: tuple[str, ...]
    answer: str
    allowed: Callable[[Row], Sequence[str]]
    number: bool = True
    holds: Mapping[str, str] = field(default_factory=dict)


def _listed(*answers: str) -> Callable[[Row], Sequence[str]]:
    return lambda row: answers


def _endings(row: Row) -> Sequence[str]:
    return [str(number) for number, _ in enumerate(_texts(row["endings"]))]


def _labels(row: Row) -> Sequence[str]:
    choices = row["choices"]
    labels, texts = _texts(choices["label"]), _texts(choices["text"])
    return [label for label, _ in zip(labels, texts, strict=True)]


def _texts(values: Any) -> list[str]:
    """A list of texts that say something.

    Raises:
        TypeError: it is none.
    """
    if isinstance(values, str) or not all(isinstance(v, str) and v.strip() for v in values):
        raise TypeError("a list of texts")
    return list(values)


QUESTIONS = {
    "boolq": Questions(("passage", "question"), "label", _listed("0", "1")),
    "piqa": Questions(("goal", "sol1", "sol2"), "label", _listed("0", "1")),
    "hellaswag": Questions(("ctx_a", "ctx_b", "activity_label"), "label", _endings, number=False),
    "winogrande": Questions(
        ("sentence", "option1", "option2"),
        "answer",
        _listed("1", "2"),
        number=False,
        holds={"sentence": "_"},
    ),
    "arc_easy": Questions(("question",), "answerKey", _labels, number=False),
    "arc_challenge": Questions(("question",), "answerKey", _labels, number=False),
    "openbookqa": Questions(("question_stem",), "answerKey", _labels, number=False),
}


def check_file(task: str, path: Path) -> None:
    """Raise unless every row of a task's parquet file can be answered.

    Raises:
        LorapError: the file cannot be read, has no rows, lacks a column, or a row its answer.
    """
    table = read_parquet(path, f"evaluation.zero_shot.tasks {task}")
    check_rows(task, table.to_dict("records"), list(map(str, table.columns)), str(path))


def check_rows(task: str, rows: Sequence[Any], columns: Sequence[str], where: str) -> None:
    """See `check_file`."""
    asked, setting = QUESTIONS[task], f"evaluation.zero_shot.tasks {task}"
    missing = [name for name in (*asked.texts, asked.answer) if name not in columns]
    if missing:
        raise LorapError(
            f"{setting}: '{where}' must have the columns {', '.join((*asked.texts, asked.answer))}"
            f", got none of the name {', '.join(missing)}"
        )
    if not len(rows):
        raise LorapError(f"{setting}: '{where}' must have questions, got no rows")
    for number, row in enumerate(rows, start=1):
        try:
            allowed = asked.allowed(row)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise LorapError(
                f"{setting}: row {number} of '{where}' must have choices with a text and a label "
                f"each, got {str(row)[:80]!r}"
            ) from error
        if len(allowed) < 2 or len(set(allowed)) < len(allowed):
            raise LorapError(
                f"{setting}: row {number} of '{where}' must have two choices or more, each with a "
                f"label of its own, got {', '.join(allowed) or 'none'}"
            )
        answer = row[asked.answer]
        kind: Any = (int, np.integer) if asked.number else str
        if str(answer) not in allowed or not isinstance(answer, kind):
            what = "the whole number" if asked.number else "the text"
            raise LorapError(
                f"{setting}: the {asked.answer} of row {number} of '{where}' must be {what} "
                f"{' or '.join(allowed)}, got {answer!r}: a split without answers cannot be scored"
            )
        _check_texts(asked, row, f"row {number} of '{where}'", setting)


def _check_texts(asked: Questions, row: Row, where: str, setting: str) -> None:
    for name in asked.texts:
        text, mark = row[name], asked.holds.get(name)
        if not isinstance(text, str) or (name.startswith(("sol", "option")) and not text.strip()):
            raise LorapError(f"{setting}: the {name} of {where} must be text, got {text!r}")
        if mark is not None and text.count(mark) != 1:
            raise LorapError(
                f"{setting}: the {name} of {where} must have one '{mark}', got {text[:60]!r}"
            )
