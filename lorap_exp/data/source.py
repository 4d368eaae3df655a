"""The contract of a data source, and the choice of one.

A source hands out *rows* of a text (as the hub's dataset has them), *documents* for calibration,
and files for a task. Each text carries its digest, each source says whether its numbers can be
compared with the literature.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import datasets

from lorap_exp.data.embedded import Embedded
from lorap_exp.data.hub import Hub
from lorap_exp.data.local import Local
from lorap_exp.schema.inputs import DataConfig


class DataSource(Protocol):
    """Where texts and questions come from."""

    name: str
    comparable: bool
    """Whether the numbers can be set beside published ones."""

    def label(self, text: str) -> str:
        """Column heading of a perplexity text."""
        ...

    def rows(self, text: str, split: str) -> Sequence[str]:
        """Rows of a perplexity text, as the hub's dataset has them."""
        ...

    def documents(self, text: str, split: str) -> Sequence[str]:
        """Documents of a calibration text."""
        ...

    def task(self, task: str) -> dict[str, Any] | None:
        """lm-eval keys that replace the task's own data set, or None to leave it."""
        ...

    def task_digest(self, task: str) -> str:
        """Stands for the questions of a task."""
        ...

    def instructions(self) -> str | None:
        """JSON file of alpaca-cleaned, or None to ask the hub."""
        ...


def open_source(data: DataConfig) -> DataSource:
    """The source that `data.source` names."""
    if data.source == "hub":
        return Hub()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # a request for every local file
    if data.source == "embedded":
        return Embedded()
    assert data.folder is not None
    return Local(Path(data.folder).expanduser())


@dataclass(frozen=True)
class Text:
    """A joined evaluation text and where it came from."""

    name: str
    label: str
    split: str
    content: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()
