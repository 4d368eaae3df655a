import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lorap_exp.data.embedded import PARTS, Embedded, part
from lorap_exp.data.local import TASK_SPLITS, Local
from lorap_exp.data.source import open_source
from lorap_exp.data.wikitext import articles, rows_of_lines
from lorap_exp.errors import LorapError
from lorap_exp.evaluation.profiles import PROFILES, read_text
from lorap_exp.schema.inputs import DataConfig


def test_rows_and_articles() -> None:
    lines = [" ", " = One = ", " ", " = = Part = = ", " Wins ", " = Losses = ", " Draws "]
    rows = rows_of_lines([*lines, " ", " = Two = ", " ", " more "])
    assert rows[0] == "" and rows[1] == " = One = \n"
    assert [a.split("\n")[0] for a in articles(rows)] == [" = One = ", " = Two = "]


def test_embedded_parts_are_disjoint_and_large() -> None:
    parts = [part(index) for index in PARTS.values()]
    assert len({text for texts in parts for text in texts}) == sum(map(len, parts))
    assert all(sum(map(len, texts)) > 80_000 for texts in parts)
    assert open_source(DataConfig(source="embedded", folder=None)).comparable is False


def test_wikitext_is_the_text_everyone_scores(shared: Path) -> None:
    data = Local(shared / "data")
    text = read_text("wikitext2", PROFILES["lorap"], data)
    assert len(text.content.encode()) == 1_296_370
    assert text.sha256 == "696cca6b65a171b0a358a4be6732cdfdf2dd6164a32e20fd70e3c13fc4dfae83"


def test_local_calibration_texts(shared: Path) -> None:
    data = Local(shared / "data")
    assert len(data.documents("c4", "train")) == 584
    assert len(data.documents("wikitext2", "validation")) == 60


def test_training_text_from_the_tokenised_release(shared: Path) -> None:
    data = Local(shared / "data")
    rows = data.rows("wikitext2", "train")
    assert len(rows) == 36_718
    raw = data.rows("wikitext2", "validation")
    for text in (rows, raw):  # one convention: blank rows are empty, others " text \n"
        assert all(row == "" or (row[0] == " " and row.endswith(" \n")) for row in text)
    words = Counter(word for row in rows for word in row.split())
    assert len(words) == 33_278 - 1  # its documented vocabulary, in which </s> is the newline
    assert sum(words.values()) + len(rows) == 2_088_628  # and its tokens, a </s> for every row
    assert len(data.documents("wikitext2", "train")) == 600


def test_the_raw_training_text_comes_first(tmp_path: Path) -> None:
    folder = tmp_path / "wikitext2"
    folder.mkdir()
    (folder / "train.txt").write_bytes(b" \n = One = \n \n a page\x0cbreak \n")
    pd.DataFrame({"text": ["", " = <unk> = \n"]}).to_parquet(folder / "train.tokens.parquet")
    entries = {
        f"wikitext2/{path.name}": {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in folder.iterdir()
    }
    manifest = tmp_path / "MANIFEST.json"
    manifest.write_text(json.dumps(entries))
    raw = ["", " = One = \n", "", " a page\x0cbreak \n"]
    assert Local(tmp_path).rows("wikitext2", "train") == raw
    del entries["wikitext2/train.txt"]
    manifest.write_text(json.dumps(entries))
    assert Local(tmp_path).rows("wikitext2", "train") == ["", " = <unk> = \n"]


def test_ptb_training_text(shared: Path) -> None:
    rows = Local(shared / "data").rows("ptb", "train")
    assert len(rows) == 42_068 and rows[1].startswith("pierre <unk> N years old")
    assert sum(len(row.split()) for row in rows) + len(rows) == 929_589  # its documented tokens


def test_a_changed_file_is_refused(shared: Path, tmp_path: Path) -> None:
    manifest = json.loads((shared / "data" / "MANIFEST.json").read_text())
    name = "tasks/piqa.parquet"
    (tmp_path / "MANIFEST.json").write_text(json.dumps({name: manifest[name]}))
    (tmp_path / "tasks").mkdir()
    shutil.copy(shared / "data" / name, tmp_path / name)
    (tmp_path / name).chmod(0o644)
    assert Local(tmp_path).task("piqa")["dataset_path"] == "parquet"
    with (tmp_path / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(
        LorapError, match=f"sha256 of '.*piqa.parquet' must be {manifest[name]['sha256']}"
    ):
        Local(tmp_path).task("piqa")


def test_what_is_not_there_is_named(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(LorapError, match=r"must hold 'ptb/test.txt'.*ptb/validation.txt"):
        Local(shared / "data").rows("ptb", "test")
    with pytest.raises(LorapError, match=r"data.folder must hold MANIFEST.json"):
        Local(tmp_path)


def embedded_rows(task: str) -> list[dict[str, Any]]:
    (path,) = Embedded().task(task)["dataset_kwargs"]["data_files"].values()
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("task", TASK_SPLITS)
def test_embedded_questions_have_the_fields_of_their_tasks(task: str) -> None:
    rows = embedded_rows(task)
    assert len(rows) >= 32
    assert len({json.dumps(row) for row in rows}) == len(rows)
    golds = [str(row.get("label", row.get("answer", row.get("answerKey")))) for row in rows]
    most = max(golds.count(gold) for gold in golds)
    assert most <= len(rows) * 0.6, f"{task}: always answering one label must not score well"


def choices_of(row: dict[str, Any]) -> tuple[list[str], int]:
    if "endings" in row:
        return row["endings"], int(row["label"])
    if "goal" in row:
        return [row["sol1"], row["sol2"]], row["label"]
    return row["choices"]["text"], row["choices"]["label"].index(row["answerKey"])


@pytest.mark.parametrize("pick", [min, max])
@pytest.mark.parametrize("task", ["piqa", "hellaswag", "arc_easy", "arc_challenge", "openbookqa"])
def test_length_does_not_tell_the_answer(task: str, pick: Callable[[Iterable[int]], int]) -> None:
    """Always the shortest choice, or always the longest, is right no more often than by luck."""
    right, chance, variance = 0.0, 0.0, 0.0
    rows = embedded_rows(task)
    for row in rows:
        choices, gold = choices_of(row)
        lengths = [len(choice) for choice in choices]
        picked = [length == pick(lengths) for length in lengths]
        right += picked[gold] / sum(picked)
        p = 1 / len(choices)
        chance, variance = chance + p, variance + p * (1 - p)
    assert abs(right - chance) <= math.sqrt(variance), f"{right} of {len(rows)}, chance {chance}"


def test_an_ending_alone_tells_nothing() -> None:
    """Each ending of HellaSwag's questions is right once and wrong in three other questions."""
    right, offered = Counter[str](), Counter[str]()
    for endings, gold in map(choices_of, embedded_rows("hellaswag")):
        right[endings[gold]] += 1
        offered.update(endings)
    assert set(right.values()) == {1} and set(offered.values()) == {4}
    assert right.keys() == offered.keys()
