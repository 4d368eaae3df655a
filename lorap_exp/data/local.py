"""A folder of real data with a manifest: every file is verified before it is used.

The layout is `wikitext2/`, `ptb/`, `calibration/`, `tasks/`, and MANIFEST.json with the bytes and
sha256 of each file. A text is `<text>/<split>.txt`, one row a line; `<split>.tokens.parquet` (rows
of the tokenised release, rare words replaced by `<unk>`) stands in for it where it alone is listed.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lorap_exp.data import wikitext
from lorap_exp.errors import LorapError
from lorap_exp.reporting.progress import say

TASK_SPLITS = {
    "boolq": "validation",
    "piqa": "validation",
    "hellaswag": "validation",
    "winogrande": "validation",
    "arc_easy": "test",
    "arc_challenge": "test",
    "openbookqa": "test",
}


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
        manifest = folder / "MANIFEST.json"
        if not manifest.is_file():
            raise LorapError(f"data.folder must hold MANIFEST.json, got '{folder}'")
        self.folder = folder
        self.manifest: dict[str, dict[str, Any]] = json.loads(manifest.read_text())

    def label(self, text: str) -> str:
        return {"wikitext2": "WikiText-2", "ptb": "PTB"}[text]

    def rows(self, text: str, split: str) -> list[str]:
        name, tokenised = f"{text}/{split}.txt", f"{text}/{split}.tokens.parquet"
        if name not in self.manifest and tokenised in self.manifest:
            say(f"  data: '{tokenised}' stands in for '{name}': rare words are <unk>")
            return pd.read_parquet(self._verified(tokenised))["text"].tolist()
        lines = self._lines(name)
        return wikitext.rows_of_lines(lines) if text == "wikitext2" else [s.strip() for s in lines]

    def documents(self, text: str, split: str) -> Sequence[str]:
        if text == "c4":
            return self._lines("calibration/c4_sample.txt")
        rows = self.rows(text, split)
        return wikitext.articles(rows) if text == "wikitext2" else ["\n\n".join(rows)]

    def task(self, task: str) -> dict[str, Any]:
        path = self._verified(f"tasks/{task}.parquet")
        files = {TASK_SPLITS[task]: str(path.resolve())}
        return only_split(task) | {
            "dataset_path": "parquet",
            "dataset_kwargs": {"data_files": files},
        }

    def _lines(self, name: str) -> list[str]:
        """Lines that end at a newline and at nothing else (a page break belongs to its line)."""
        return self._verified(name).read_bytes().decode().removesuffix("\n").split("\n")

    def _verified(self, name: str) -> Path:
        path = self.folder / name
        if name not in self.manifest or not path.is_file():
            beside = sorted(n for n in self.manifest if n.startswith(name.partition("/")[0] + "/"))
            raise LorapError(
                f"data.folder '{self.folder}' must hold '{name}' and list it in MANIFEST.json; "
                f"it lists {beside or sorted(self.manifest)}"
            )
        expected = self.manifest[name]["sha256"]
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            raise LorapError(
                f"data.folder: the sha256 of '{path}' must be {expected} as its MANIFEST.json "
                f"says, got {found}"
            )
        return path
