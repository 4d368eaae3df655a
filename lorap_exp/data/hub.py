"""The hub's data sets under their full names; none of them needs a loading script."""

from collections.abc import Sequence
from typing import Any

import httpx2
from datasets import load_dataset
from datasets.exceptions import DatasetsError

from lorap_exp.data import wikitext
from lorap_exp.data.tasks import COMMONSENSE, TASKS
from lorap_exp.errors import LorapError, first_line

DATASETS: dict[str, dict[str, Any]] = {
    "wikitext2": {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1"},
    "ptb": {"path": "ptb-text-only/ptb_text_only", "revision": "refs/convert/parquet"},
    "c4": {
        "path": "allenai/c4",
        "data_files": {"train": "en/c4-train.00000-of-01024.json.gz"},
        "split": "train",
    },
}
TASK_DATASETS = {name: TASKS[name].dataset for name in COMMONSENSE}
"""The data sets of the tasks that `data fetch` brings."""
C4_VALIDATION = {"data_files": {"validation": "en/c4-validation.00000-of-00008.json.gz"}}
UNREACHABLE = (OSError, ValueError, DatasetsError, httpx2.HTTPError)
"""What `load_dataset` and its streams raise when the hub does not answer as it should."""


class Hub:
    """`data.source=hub`: needs a network or the hub's cache."""

    name = "hub"
    comparable = True

    def label(self, text: str) -> str:
        return {"wikitext2": "WikiText-2", "ptb": "PTB", "c4": "C4"}[text]

    def rows(self, text: str, split: str) -> Sequence[str]:
        arguments = {"split": split} | DATASETS[text]
        if (text, split) == ("c4", "validation"):
            arguments |= C4_VALIDATION | {"split": split}
        try:
            dataset = load_dataset(**arguments)
        except UNREACHABLE as error:
            raise LorapError(
                f"data.source=hub needs '{DATASETS[text]['path']}' from the hub or its cache; "
                f"data=local and data=embedded work without a network; got: {first_line(error)}"
            ) from error
        return dataset["sentence" if text == "ptb" else "text"]

    def documents(self, text: str, split: str) -> Sequence[str]:
        rows = self.rows(text, split)
        if text == "wikitext2":
            return wikitext.articles(rows)
        return rows if text == "c4" else ["\n\n".join(rows)]

    def task(self, task: str) -> dict[str, Any] | None:
        return None

    def task_digest(self, task: str) -> str:
        return f"hub: {TASKS[task].dataset}" if task in TASKS else f"hub: {task} of lm-eval"

    def instructions(self) -> str | None:
        return None
