"""A folder of real data with a manifest: every file is verified before it is used.

The layout is `wikitext2/`, `ptb/`, `calibration/`, `tasks/`, `instructions/`, and MANIFEST.json
with the bytes and sha256 of each file. A text is `<text>/<split>.txt`, one row a line, and C4 is
`c4_sample.jsonl`. Where only they are listed, `<split>.tokens.parquet` (rows of the tokenised
release, rare words replaced by `<unk>`) and `c4_sample.txt` (a document a line) stand in for them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorap_exp.data import wikitext
from lorap_exp.data.files import decode, json_lines, read_bytes, read_parquet, texts
from lorap_exp.data.manifest import Manifest, digest_of, read_manifest, sha256_of
from lorap_exp.data.questions import check_file
from lorap_exp.errors import LorapError
from lorap_exp.workspace.progress import say

SETTING = "data.folder"
SPLITS = ("train", "validation", "test")
TASK_SPLITS = {
    "boolq": "validation",
    "piqa": "validation",
    "hellaswag": "validation",
    "winogrande": "validation",
    "arc_easy": "test",
    "arc_challenge": "test",
    "openbookqa": "test",
}
ALPACA_FILE = "instructions/alpaca_cleaned.json"


def text_files(text: str, split: str) -> tuple[str, str]:
    """The file of a split as the hub has it, and the lesser one that may stand in for it."""
    if text == "c4":
        return "calibration/c4_sample.jsonl", "calibration/c4_sample.txt"
    return f"{text}/{split}.txt", f"{text}/{split}.tokens.parquet"


def only_split(task: str) -> dict[str, Any]:
    """lm-eval keys of a task that has no split but the one it is scored on."""
    splits: dict[str, Any] = dict.fromkeys(
        ("training_split", "validation_split", "test_split", "fewshot_split")
    )
    return splits | {f"{TASK_SPLITS[task]}_split": TASK_SPLITS[task], "dataset_name": None}


class Local:
    """`data.source=local`: files of `data.folder`, each checked against its manifest."""

    name = "local"
    comparable = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)

    def label(self, text: str) -> str:
        return {"wikitext2": "WikiText-2", "ptb": "PTB"}[text]

    def rows(self, text: str, split: str) -> list[str]:
        raw, tokenised = text_files(text, split)
        if raw not in self.manifest and tokenised in self.manifest:
            say(f"  data: '{tokenised}' stands in for '{raw}': rare words are <unk>")
            path = self._verified(tokenised)
            return texts(read_parquet(path, SETTING).to_dict("records"), path, SETTING)
        lines = self._lines(raw)
        return wikitext.rows_of_lines(lines) if text == "wikitext2" else [s.strip() for s in lines]

    def documents(self, text: str, split: str) -> Sequence[str]:
        if text == "c4":
            whole, flat = text_files(text, split)
            if whole not in self.manifest and flat in self.manifest:
                return self._lines(flat)
            path = self._verified(whole)
            return texts(json_lines(self._text(path), path, SETTING), path, SETTING)
        rows = self.rows(text, split)
        return wikitext.articles(rows) if text == "wikitext2" else ["\n\n".join(rows)]

    def task(self, task: str) -> dict[str, Any]:
        path = self._verified(f"tasks/{task}.parquet")
        check_file(task, path)
        files = {TASK_SPLITS[task]: str(path.resolve())}
        return only_split(task) | {
            "dataset_path": "parquet",
            "dataset_kwargs": {"data_files": files},
        }

    def instructions(self) -> str:
        if ALPACA_FILE not in self.manifest:
            raise LorapError(
                f"method.stages.recovery.text=alpaca needs '{ALPACA_FILE}' in data.folder "
                f"'{self.folder}' ('python -m lorap_exp data fetch --only alpaca' brings it) or a "
                f"method.stages.recovery.file, got null"
            )
        return str(self._verified(ALPACA_FILE))

    def task_digest(self, task: str) -> str:
        return digest_of(self.manifest[f"tasks/{task}.parquet"])

    def _lines(self, name: str) -> list[str]:
        """Lines that end at a newline and at nothing else (a page break belongs to its line)."""
        return self._text(self._verified(name)).removesuffix("\n").split("\n")

    def _text(self, path: Path) -> str:
        return decode(read_bytes(path, SETTING), path, SETTING)

    def _verified(self, name: str) -> Path:
        path = self.folder / name
        if name not in self.manifest or not path.is_file():
            beside = sorted(n for n in self.manifest if n.startswith(name.partition("/")[0] + "/"))
            raise LorapError(
                f"data.folder '{self.folder}' must hold '{name}' and list it in MANIFEST.json; "
                f"it lists {beside or sorted(self.manifest)}"
            )
        if (found := sha256_of(path)) != (expected := digest_of(self.manifest[name])):
            raise LorapError(
                f"data.folder: the sha256 of '{path}' must be {expected} as its MANIFEST.json "
                f"says, got {found}"
            )
        return path
