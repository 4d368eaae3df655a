"""A folder fetched from a stand-in for the hub is what `data=local` reads, byte for byte."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from datasets import Dataset, IterableDataset
from filelock import FileLock

from lorap_exp.commands.subcommands import GROUPS
from lorap_exp.commands.verify import paper_files, verify
from lorap_exp.data import fetch as module
from lorap_exp.data.fetch import fetch
from lorap_exp.data.hub import TASK_DATASETS
from lorap_exp.data.local import TASK_SPLITS, Local
from lorap_exp.data.manifest import read_manifest
from lorap_exp.data.wikitext import lines_of_rows, rows_of_lines
from lorap_exp.errors import LorapError
from lorap_exp.methods.contract import Texts
from lorap_exp.methods.lora import LoraRecovery
from lorap_exp.models.tiny import byte_tokenizer
from tests.methods.stacks import stack_of, step_of

WIKITEXT = ["", " = One = \n", "", " a page\x0cbreak <unk> \n", "", " = Zwei = \n", "", " ü \n"]
CHOICES = {"text": ["a", "b"], "label": ["A", "B"]}
ARC = {"id": "1", "question": "q", "choices": CHOICES, "answerKey": "A"}
ROWS: dict[str, list[dict[str, Any]]] = {
    "Salesforce/wikitext": [{"text": row} for row in WIKITEXT],
    "ptb-text-only/ptb_text_only": [{"sentence": "mr. <unk> is N"}, {"sentence": "two"}],
    "allenai/c4": [{"text": f"doc {i}\n\u2028two", "timestamp": "t", "url": "u"} for i in range(9)],
    "yahma/alpaca-cleaned": [
        {"output": f"{i}\n", "input": "", "instruction": f"Säg {i}"} for i in range(12)
    ],
    "aps/super_glue": [{"question": "q", "passage": "p", "idx": 0, "label": 1}],
    "baber/piqa": [{"goal": "g", "sol1": "a", "sol2": "b", "label": 0}],
    "Rowan/hellaswag": [
        {
            "ind": 24,
            "activity_label": "l",
            "ctx_a": "a",
            "ctx_b": "b",
            "ctx": "a b",
            "endings": ["w", "x", "y", "z"],
            "source_id": "s",
            "split": "val",
            "split_type": "indomain",
            "label": "3",
        }
    ],
    "allenai/winogrande": [{"sentence": "_", "option1": "a", "option2": "b", "answer": "2"}],
    "allenai/ai2_arc": [ARC],
    "allenai/openbookqa": [{"id": "1", "question_stem": "q", "choices": CHOICES, "answerKey": "B"}],
}


class StandIn:
    """`load_dataset` with rows in memory; `down` is what it raises for a data set."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None, str]] = []
        self.down: dict[str, Exception] = {}

    def __call__(
        self, path: str, name: str | None = None, split: str = "", **others: Any
    ) -> Dataset | IterableDataset:
        assert set(others) <= {"revision", "data_files", "streaming"}
        if path in self.down:
            raise self.down[path]
        self.asked.append((path, name, split))
        dataset = Dataset.from_list(ROWS[path])
        return dataset.to_iterable_dataset() if others.get("streaming") else dataset


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr(module, "load_dataset", stand_in)
    return stand_in


def test_a_fetched_folder_is_read_by_local(tmp_path: Path, hub: StandIn) -> None:
    fetch(tmp_path / "new" / "folder", GROUPS, 5)
    data = Local(tmp_path / "new" / "folder")
    for split in ("train", "validation", "test"):
        assert data.rows("wikitext2", split) == WIKITEXT
        assert data.rows("ptb", split) == ["mr. <unk> is N", "two"]
    assert len(data.documents("wikitext2", "train")) == 2
    assert data.documents("c4", "train") == [f"doc {i}\n\u2028two" for i in range(5)]
    for task, split in TASK_SPLITS.items():
        path = data.task(task)["dataset_kwargs"]["data_files"][split]
        assert (
            Dataset.from_parquet(path, cache_dir=str(tmp_path / "cache")).to_list()
            == (ROWS[TASK_DATASETS[task]["path"]])
        )
    assert ("allenai/ai2_arc", "ARC-Easy", "test") in hub.asked
    assert ("allenai/winogrande", "winogrande_xl", "validation") in hub.asked
    table, wrong = verify(data.folder)
    assert not wrong and "evaluation=paper: complete" in table
    entry = read_manifest(data.folder)["tasks/piqa.parquet"]
    assert set(entry) == {"bytes", "sha256", "what", "licence", "source", "rows"}
    assert not list(data.folder.rglob("*.partial*"))


def test_real_texts_come_back_byte_for_byte(shared: Path, tmp_path: Path, hub: StandIn) -> None:
    local = Local(shared / "data")
    for text, path, column in (
        ("wikitext2", "Salesforce/wikitext", "text"),
        ("ptb", "ptb-text-only/ptb_text_only", "sentence"),
    ):
        rows = [{column: row} for row in local.rows(text, "validation")]
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(ROWS, path, rows)
            fetch(tmp_path, [text], 1)
        name = f"{text}/validation.txt"
        assert read_manifest(tmp_path)[name]["sha256"] == local.manifest[name]["sha256"]


def test_lines_and_rows_are_inverse() -> None:
    assert rows_of_lines(lines_of_rows(WIKITEXT)) == WIKITEXT


def test_a_fetch_goes_on_where_it_was_cut(tmp_path: Path, hub: StandIn) -> None:
    hub.down["ptb-text-only/ptb_text_only"] = ConnectionError("Couldn't reach it\nmore")
    with pytest.raises(LorapError, match=r"for 'ptb/train.txt'; 3 of 6 files .*reach it$"):
        fetch(tmp_path, ["wikitext2", "ptb"], 5)
    assert len(read_manifest(tmp_path)) == 3
    hub.down.clear()
    (tmp_path / "wikitext2" / "test.txt").write_text("damaged")
    hub.asked.clear()
    fetch(tmp_path, ["wikitext2", "ptb"], 5)
    assert [path.split("/")[1] for path, _, _ in hub.asked] == ["wikitext"] + 3 * ["ptb_text_only"]
    hub.asked.clear()
    fetch(tmp_path, ["wikitext2", "ptb"], 5)
    assert hub.asked == []


def test_another_number_of_documents_is_fetched_again(tmp_path: Path, hub: StandIn) -> None:
    for documents in (3, 6, 6):
        fetch(tmp_path, ["c4"], documents)
        assert len(Local(tmp_path).documents("c4", "train")) == documents
    assert len(hub.asked) == 2


@pytest.mark.parametrize("error", [ValueError("Unknown split"), httpx2.ReadTimeout("")])
def test_the_hubs_failures_are_one_sentence(tmp_path: Path, hub: StandIn, error: Exception) -> None:
    hub.down["baber/piqa"] = error
    with pytest.raises(LorapError, match=r"'baber/piqa' \(validation\).* got: (Unknown|ReadTime)"):
        fetch(tmp_path, ["tasks"], 5)


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_named(
    tmp_path: Path, hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(tmp_path, ["wikitext2"], 5)
    wrapped = ValueError("could not generate")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    hub.down["allenai/c4"] = wrapped  # the hub's cache
    with pytest.raises(LorapError, match="the disk is full"):
        fetch(tmp_path, ["c4"], 5)
    monkeypatch.setattr(module, "_write_lines", full_disk)  # the folder
    with pytest.raises(LorapError, match="the disk is full"):
        fetch(tmp_path, ["ptb"], 5)
    assert verify(tmp_path)[1] == []
    assert not list(tmp_path.rglob("*.partial*"))


def test_a_folder_that_cannot_be_written(tmp_path: Path, hub: StandIn) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LorapError, match="--folder must be a folder that can be written, got '"):
        fetch(tmp_path / "file" / "inside", ["ptb"], 5)
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(LorapError, match="in use by another process"),
    ):
        fetch(tmp_path, ["ptb"], 5)


def test_verify_finds_a_flipped_byte_and_a_missing_file(tmp_path: Path, hub: StandIn) -> None:
    fetch(tmp_path, ["ptb", "tasks"], 5)
    path = tmp_path / "tasks" / "piqa.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (tmp_path / "ptb" / "test.txt").unlink()
    table, wrong = verify(tmp_path)
    assert wrong == ["ptb/test.txt", "tasks/piqa.parquet"]
    states = {line.split()[0]: line.split()[-1] for line in table.splitlines() if line}
    assert states["ptb/test.txt"] == "missing" and states["tasks/piqa.parquet"] == "damaged"
    assert states["ptb/train.txt"] == "ok"
    assert "ptb           train, validation\n" in table
    assert "evaluation=paper: lacks wikitext2/test.txt, tasks/piqa.parquet" in table


def test_verify_of_the_shared_folder(shared: Path) -> None:
    table, wrong = verify(shared / "data")
    assert wrong == [] and "train (tokenised), validation, test" in table
    assert "evaluation=paper: complete" in table
    assert len(paper_files()) == 9


@pytest.mark.parametrize("text", ["not json", "[]", '{"a.txt": {"bytes": 1}}'])
def test_a_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "MANIFEST.json").write_text(text)
    with pytest.raises(LorapError, match="MANIFEST.json' must"):
        Local(tmp_path)


def test_recovery_reads_instructions_of_the_folder(
    tmp_path: Path, hub: StandIn, config: Callable[..., Any]
) -> None:
    few = "method.stages.recovery.validation_samples=4"
    recovery = step_of(stack_of(config, "method=lorap_lora", few), "recovery")
    assert isinstance(recovery, LoraRecovery)
    fetch(tmp_path, ["ptb"], 5)
    with pytest.raises(LorapError, match=r"instructions/alpaca_cleaned.json.*recovery.file"):
        recovery.read(Texts(byte_tokenizer(), Local(tmp_path), None))
    fetch(tmp_path, ["alpaca"], 5)
    assert len(recovery.read(Texts(byte_tokenizer(), Local(tmp_path), None))) == 12
    fetched = json.loads((tmp_path / "instructions" / "alpaca_cleaned.json").read_text("utf-8"))
    assert fetched == ROWS["yahma/alpaca-cleaned"]
