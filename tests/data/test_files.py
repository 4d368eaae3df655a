"""Texts and questions in files: one row a file; read right, or refused in one sentence."""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lorap_exp.data.files import read_documents
from lorap_exp.data.instructions import read_instructions
from lorap_exp.data.local import Local
from lorap_exp.data.manifest import read_manifest, state
from lorap_exp.data.questions import QUESTIONS
from lorap_exp.errors import LorapError

LINES = '{"text": "one"}\n\n{"text": "two", "id": 3}\n'
ROWS = ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "one\ntwo", "one\ntwo"),
        ("a", "one", "one"),
        ("a.md", "# one", "# one"),
        ("a.txt", b"\xef\xbb\xbfone", "one"),
        ("a.txt.gz", gzip.compress(b"one", mtime=0), "one"),
        ("a.jsonl", LINES, ROWS),
        ("A.JSONL", LINES, ROWS),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0), ROWS),
        ("a.json", "[]", LorapError("must be plain text or rows with a text .*a.json")),
        ("a.csv", "text\none", LorapError("must be plain text or rows")),
        ("a.json.gz", gzip.compress(b"{}", mtime=0), LorapError("must be plain text or rows")),
        ("a.txt", b"caf\xe9", LorapError("must be UTF-8 text, got .* with byte 0xe9 at 3")),
        ("a.txt", "one".encode("utf-16"), LorapError("must be UTF-8 text")),
        ("a.txt", b"a\0b", LorapError("must be text, got .* with zero bytes")),
        ("a.jsonl", "{", LorapError("line 1 of .* must be JSON")),
        ("a.jsonl", '{"text": "x"}\nplain', LorapError("line 2 of .* must be JSON")),
        ("a.jsonl", '{"content": "x"}', LorapError("row 1 of .* must have a text")),
        ("a.jsonl", '{"text": null}', LorapError("row 1 of .* must have a text")),
        ("a.jsonl", '["x"]', LorapError("row 1 of .* must have a text")),
        ("a.jsonl", b'{"text": "\xe9"}', LorapError("must be UTF-8")),
        ("a.jsonl.gz", LINES, LorapError("must be gzipped")),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-9], LorapError("must be gzipped")),
        ("a.parquet", "no", LorapError("must be parquet")),
        ("a.parquet", "", LorapError("must be parquet")),
    ],
)
def test_a_file_of_texts(tmp_path: Path, name: str, content: str | bytes, expected: Any) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if not isinstance(expected, LorapError):
        assert read_documents(path, "calibration.files") == expected
        return
    with pytest.raises(LorapError, match=f"^calibration.files.*{expected}") as caught:
        read_documents(path, "calibration.files")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ({"text": ROWS}, ROWS),
        ({"content": ROWS}, LorapError("row 1 of .* must have a text")),
        ({"text": ["one", None]}, LorapError("row 2 of .* must have a text")),
        ({"text": [1, 2]}, LorapError("row 1 of .* must have a text")),
    ],
)
def test_a_parquet_file_of_texts(tmp_path: Path, rows: dict[str, Any], expected: Any) -> None:
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    if not isinstance(expected, LorapError):
        assert read_documents(tmp_path / "a.parquet", "x") == expected
        return
    with pytest.raises(LorapError, match=str(expected)):
        read_documents(tmp_path / "a.parquet", "x")


CHOICES = {"text": ["x", "y"], "label": ["A", "B"]}
SOUND: dict[str, dict[str, Any]] = {
    "boolq": {"passage": "p", "question": "q", "label": 1},
    "piqa": {"goal": "g", "sol1": "a", "sol2": "b", "label": 0},
    "hellaswag": {
        "ctx_a": "a",
        "ctx_b": "b",
        "activity_label": "c",
        "endings": ["w", "x", "y", "z"],
        "label": "3",
    },
    "winogrande": {"sentence": "a _", "option1": "b", "option2": "c", "answer": "2"},
    "arc_easy": {"question": "q", "choices": CHOICES, "answerKey": "B"},
    "arc_challenge": {"question": "q", "choices": CHOICES, "answerKey": "A"},
    "openbookqa": {"question_stem": "q", "choices": CHOICES, "answerKey": "A"},
}


def folder_of(path: Path, task: str, table: pd.DataFrame) -> Local:
    file = path / "tasks" / f"{task}.parquet"
    file.parent.mkdir(exist_ok=True)
    table.to_parquet(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest().upper()
    entry = {f"tasks/{task}.parquet": {"sha256": digest}}
    (path / "MANIFEST.json").write_text(json.dumps(entry))
    return Local(path)


WRONG_NUMBERS: list[Any] = [-1, 9, 1.0, "1", "", None]
WRONG_WORDS: list[Any] = ["-1", "9", "", None, 1, 2.0]
"""Answers that are none: beyond, empty, of a type that lm-eval compares with nothing."""
ODD: list[tuple[str, dict[str, Any], str]] = [
    ("hellaswag", {"endings": "abcd"}, "must have choices with a text"),
    ("hellaswag", {"endings": ["w", None, "y", "z"]}, "must have choices with a text"),
    ("hellaswag", {"endings": ["w", " ", "y", "z"]}, "must have choices with a text"),
    ("winogrande", {"sentence": "a b"}, "the sentence of row 1 .* must have one '_'"),
    ("winogrande", {"sentence": "a _ b _ c"}, "the sentence of row 1 .* must have one '_'"),
    ("winogrande", {"option1": ""}, "the option1 of row 1 .* must be text, got ''"),
    ("piqa", {"sol2": ""}, "the sol2 of row 1 .* must be text, got ''"),
    ("arc_easy", {"choices": {"text": ["x", None], "label": ["A", "B"]}}, "must have choices"),
    ("arc_easy", {"choices": {"text": ["x", "y"], "label": ["B", "B"]}}, "a label of its own"),
    ("arc_easy", {"choices": {"text": ["x"], "label": ["B"]}}, "two choices or more"),
]


def blank(table: pd.DataFrame, column: str) -> pd.DataFrame:
    copy = table.copy()
    copy[column] = None
    return copy


@pytest.mark.parametrize("task", SOUND)
def test_questions_with_answers(tmp_path: Path, task: str) -> None:
    row, asked = SOUND[task], QUESTIONS[task]
    assert folder_of(tmp_path, task, pd.DataFrame([row])).task(task)["dataset_path"] == "parquet"
    for answer in WRONG_NUMBERS if asked.number else WRONG_WORDS:
        wrong = pd.DataFrame([row | {asked.answer: answer}])
        message = f"zero_shot.tasks {task}: the {asked.answer} of row 1 of .* must be the "
        with pytest.raises(LorapError, match=message):
            folder_of(tmp_path, task, wrong).task(task)
    table = pd.DataFrame([row])
    for broken, message in (
        (table.iloc[:0], "must have questions, got no rows"),
        (table.drop(columns=asked.answer), f"got none of the name {asked.answer}"),
        (table.drop(columns=asked.texts[0]), f"got none of the name {asked.texts[0]}"),
        (blank(table, asked.texts[0]), f"the {asked.texts[0]} of row 1"),
        (blank(table, asked.answer), "must be the"),
    ):
        with pytest.raises(LorapError, match=message):
            folder_of(tmp_path, task, broken).task(task)
    file = tmp_path / "tasks" / f"{task}.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    (tmp_path / "MANIFEST.json").write_text(
        json.dumps({f"tasks/{task}.parquet": {"sha256": digest}})
    )
    with pytest.raises(LorapError, match="must be parquet"):
        Local(tmp_path).task(task)


@pytest.mark.parametrize(("task", "changes", "message"), ODD)
def test_odd_questions(tmp_path: Path, task: str, changes: dict[str, Any], message: str) -> None:
    table = pd.DataFrame([SOUND[task] | changes])
    with pytest.raises(LorapError, match=message):
        folder_of(tmp_path, task, table).task(task)


def test_the_shared_questions_have_answers(shared: Path) -> None:
    for task in SOUND:
        assert Local(shared / "data").task(task)


SHA = "a" * 64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "must be JSON"),
        (b"\xff", "must be JSON"),
        ("[]", "must map each file"),
        ('{"a": {}}', "must map each file"),
        ('{"a": {"sha256": 3}}', "must map each file"),
        ('{"a": {"sha256": "abc"}}', "must map each file"),
        (json.dumps({"../x": {"sha256": SHA}}), "inside its folder.* got '../x'"),
        (json.dumps({"a/../../x": {"sha256": SHA}}), "inside its folder"),
        (json.dumps({"/etc/passwd": {"sha256": SHA}}), "inside its folder"),
        (json.dumps({"": {"sha256": SHA}}), "inside its folder"),
        (json.dumps({"a\x1b[31m": {"sha256": SHA}}), r"visible characters, got 'a\\x1b\[31m'"),
        (json.dumps({"a\nb": {"sha256": SHA}}), "visible characters"),
    ],
)
def test_a_wrong_manifest(tmp_path: Path, content: str | bytes, message: str) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "MANIFEST.json").write_bytes(raw)
    with pytest.raises(LorapError, match=message) as caught:
        read_manifest(tmp_path)
    assert str(caught.value).isprintable()


def test_upper_case_digests_are_fine(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    digest = hashlib.sha256(b"x").hexdigest().upper()
    (tmp_path / "MANIFEST.json").write_text(json.dumps({"a": {"sha256": digest}}))
    assert state(tmp_path, "a", read_manifest(tmp_path)) == "ok"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "{}",
        "[3]",
        '[{"instruction": "a"}]',
        '[{"instruction": "a", "output": 3}]',
        "null",
        b"\xff",
    ],
)
def test_wrong_instructions(tmp_path: Path, content: str | bytes) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "a.json").write_bytes(raw)
    with pytest.raises(LorapError, match="recovery.file must be a JSON list"):
        read_instructions(str(tmp_path / "a.json"))
