"""Whether a task's file has questions with answers: checked when data are opened, not scored at 0.

Test splits of the hub have the label -1 or an empty one; a model scored on them has 0 %.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorap_exp.data.files import read_parquet
from lorap_exp.errors import LorapError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Questions:
    """Columns of text, the column of the answer, and the answers that a row may have."""

    texts: tuple[str, ...]
    answer: str
    allowed: Callable[[Row], Sequence[str]]


def _listed(*answers: str) -> Callable[[Row], Sequence[str]]:
    return lambda row: answers


def _endings(row: Row) -> Sequence[str]:
    return [str(number) for number in range(len(row["endings"]))]


def _labels(row: Row) -> Sequence[str]:
    choices = row["choices"]
    labels, texts = list(choices["label"]), list(choices["text"])
    return [str(label) for label, _ in zip(labels, texts, strict=True)]


QUESTIONS = {
    "boolq": Questions(("passage", "question"), "label", _listed("0", "1")),
    "piqa": Questions(("goal", "sol1", "sol2"), "label", _listed("0", "1")),
    "hellaswag": Questions(("ctx_a", "ctx_b", "activity_label"), "label", _endings),
    "winogrande": Questions(("sentence", "option1", "option2"), "answer", _listed("1", "2")),
    "arc_easy": Questions(("question",), "answerKey", _labels),
    "arc_challenge": Questions(("question",), "answerKey", _labels),
    "openbookqa": Questions(("question_stem",), "answerKey", _labels),
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
        answer = _plain(row[asked.answer])
        if len(allowed) < 2 or len(set(allowed)) < len(allowed) or answer not in allowed:
            raise LorapError(
                f"{setting}: the {asked.answer} of row {number} of '{where}' must be one of "
                f"{', '.join(allowed) or 'two choices or more'}, got {row[asked.answer]!r}: a "
                f"split without answers cannot be scored"
            )
        for name in asked.texts:
            if not isinstance(row[name], str):
                raise LorapError(
                    f"{setting}: the {name} of row {number} of '{where}' must be text, got "
                    f"{row[name]!r}"
                )


def _plain(answer: Any) -> str:
    """An answer as text: whole numbers without a point, whatever type the file gives them."""
    if isinstance(answer, float) and answer.is_integer():
        return str(int(answer))
    return str(int(answer)) if isinstance(answer, bool) else str(answer)
