"""Data that every installation has: Python's own documentation and questions of this project.

It makes the whole table run without a network. Its numbers are not comparable with the
literature, and say so wherever they appear.
"""

import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from lorap_exp.data.local import TASK_SPLITS, only_split
from lorap_exp.errors import LorapError

PARTS = {"embedded": 0, "wikitext2": 1, "ptb": 2}


def part(index: int, of: int = 3) -> list[str]:
    """Every third distinct topic of `pydoc_data.topics`, by name: the parts are disjoint."""
    distinct = dict.fromkeys(topics[name] for name in sorted(topics))
    return list(distinct)[index::of]


class Embedded:
    """`data.source=embedded`: topics 2 and 3 of three stand for WikiText-2 and PTB."""

    name = "embedded"
    comparable = False

    def label(self, text: str) -> str:
        if text not in ("wikitext2", "ptb"):
            raise LorapError(
                f"evaluation.perplexity.texts must be wikitext2 or ptb with data=embedded, "
                f"got '{text}'"
            )
        return {"wikitext2": "pydoc A", "ptb": "pydoc B"}[text]

    def rows(self, text: str, split: str) -> Sequence[str]:
        return part(PARTS[text])

    def documents(self, text: str, split: str) -> Sequence[str]:
        return part(PARTS["embedded"])

    def task(self, task: str) -> dict[str, Any]:
        questions = resources.files("lorap_exp.evaluation") / "embedded" / f"{task}.jsonl"
        files = {TASK_SPLITS[task]: str(Path(str(questions)))}
        return only_split(task) | {"dataset_path": "json", "dataset_kwargs": {"data_files": files}}

    def task_digest(self, task: str) -> str:
        files = self.task(task)["dataset_kwargs"]["data_files"]
        return hashlib.sha256(Path(files[TASK_SPLITS[task]]).read_bytes()).hexdigest()

    def instructions(self) -> str | None:
        return None
