"""The hub's data sets under their full names; none of them needs a loading script."""

from collections.abc import Sequence
from typing import Any

import httpx2
from datasets import load_dataset
from datasets.exceptions import DatasetsError

from lorap_exp.data import wikitext
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
TASK_DATASETS: dict[str, dict[str, Any]] = {
    "boolq": {"path": "aps/super_glue", "name": "boolq"},
    "piqa": {"path": "baber/piqa"},
    "hellaswag": {"path": "Rowan/hellaswag"},
    "winogrande": {"path": "allenai/winogrande", "name": "winogrande_xl"},
    "arc_easy": {"path": "allenai/ai2_arc", "name": "ARC-Easy"},
    "arc_challenge": {"path": "allenai/ai2_arc", "name": "ARC-Challenge"},
    "openbookqa": {"path": "allenai/openbookqa", "name": "main"},
}
"""The data sets of lm-eval's own tasks."""
UNREACHABLE = (OSError, ValueError, DatasetsError, httpx2.HTTPError)
"""What `load_dataset` and its streams raise when the hub does not answer as it should."""


class Hub:
    """`data.source=hub`: needs a network or the hub's cache."""

    name = "hub"
    comparable = True

    def label(self, text: str) -> str:
        return {"wikitext2": "WikiText-2", "ptb": "PTB"}[text]

    def rows(self, text: str, split: str) -> Sequence[str]:
        arguments = {"split": split} | DATASETS[text]
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
        return f"hub: {TASK_DATASETS[task]}"

    def instructions(self) -> str | None:
        return None
