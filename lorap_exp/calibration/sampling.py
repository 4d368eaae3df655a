"""Calibration sequences: a random document longer than the window, then a random window of it.

The order of draws follows LoRAP's public code (arXiv 2404.09695).
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lorap_exp.data import files
from lorap_exp.data.embedded import Embedded
from lorap_exp.data.source import DataSource
from lorap_exp.errors import LorapError
from lorap_exp.schema.inputs import CalibrationConfig

SPECIAL = 2
"""Tokens that a tokenizer may put around a document."""
TRIES = 1000
"""Draws in a row that find no room for another window: then the text counts as full."""


def read_documents(calibration: CalibrationConfig, data: DataSource) -> list[str]:
    """The calibration text as documents, from `data`, local files or the embedded text."""
    if calibration.text == "files":
        return [d for name in calibration.files for d in split_file(name, calibration.separator)]
    return read_text(calibration.text, calibration.split, data, "calibration")


def read_text(text: str, split: str, data: DataSource, setting: str) -> list[str]:
    """Documents of a named text; `setting` is the section that an error names."""
    if text == "embedded":
        return list(Embedded().documents("embedded", split))
    if data.name == "embedded":
        raise LorapError(
            f"{setting}.text must be embedded or local files when data.source is embedded, "
            f"got '{text}'"
        )
    if text == "c4" and split != "train":
        raise LorapError(f"{setting}.split must be train for c4, got '{split}'")
    return list(data.documents(text, split))


def split_file(name: str, separator: str, setting: str = "calibration.files") -> list[str]:
    """Documents of a file: its rows, or its parts between separators."""
    found = files.read_documents(Path(name).expanduser(), setting)
    if not isinstance(found, str):
        return found
    if separator == "file":
        return [found]
    text = found.replace("\r\n", "\n")
    return [part for part in text.split("\n" if separator == "line" else "\n\n") if part.strip()]


def held_out_windows(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    samples: int,
    held: int,
    length: int,
    seed: int,
    bos: int | None,
    setting: str,
) -> Tensor:
    """Windows (samples, length) of shuffled documents; the first `held` share none with the rest.

    Raises:
        LorapError: there are not enough tokens.
    """
    documents = list(documents)
    random.Random(seed).shuffle(documents)
    cut = max(1, round(len(documents) * held / samples))
    parts = ((documents[:cut], held), (documents[cut:], samples - held))
    return torch.cat(
        [
            sample_windows(
                part, tokenizer, samples=count, length=length, seed=seed, bos=bos, setting=setting
            )
            for part, count in parts
        ]
    )


def sample_windows(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    samples: int,
    length: int,
    seed: int,
    bos: int | None = None,
    setting: str = "calibration.samples x calibration.length",
) -> Tensor:
    """Token ids (samples, length); with `bos`, each window begins with it.

    Raises:
        LorapError: the documents longer than the window hold fewer tokens than asked for.
    """
    draws = Draws(documents, tokenizer, length=length, seed=seed, bos=bos)
    most = sum(len(documents[i].encode()) + SPECIAL for i in draws.usable)  # a token has a byte
    within = samples * draws.length <= most  # else what there is is counted, and refused
    windows = [window.ids for window in islice(draws, samples if within else 0)]
    if draws.found < samples * draws.length and draws.count() < samples * draws.length:
        raise LorapError(
            f"{setting} must be at most the {draws.found} tokens of "
            f"the documents longer than {draws.length} tokens, got {samples} x {draws.length}"
        )
    return torch.tensor(windows, dtype=torch.long)


def further_windows(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    samples: int,
    held: int,
    length: int,
    seed: int,
    bos: int | None,
    setting: str,
) -> Tensor:
    """`held` windows drawn after the first `samples`; none shares a token with those or another.

    Raises:
        LorapError: the documents have no room for them.
    """
    draws = Draws(documents, tokenizer, length=length, seed=seed, bos=bos)
    taken: dict[int, list[int]] = defaultdict(list)
    for window in islice(draws, samples):
        taken[window.document].append(window.start)
    found: list[list[int]] = []
    missed = 0
    for window in draws:
        if all(abs(start - window.start) >= draws.length for start in taken[window.document]):
            found.append(window.ids)
            taken[window.document].append(window.start)
            missed = 0
        else:
            missed += 1
        if len(found) == held:
            return torch.tensor(found, dtype=torch.long)
        if missed == TRIES:
            break
    raise LorapError(
        f"{setting} must be at most {len(found)}, the windows that the calibration text holds "
        f"beside the {samples} x {length} tokens of the calibration, got {held}"
    )


@dataclass(frozen=True)
class Window:
    """A window of a document from its token `start` on; `ids` may begin with the bos."""

    document: int
    start: int
    ids: list[int]


class Draws:
    """Random windows without end: a random document longer than the window, a random place in it.

    Documents are tokenised as they are drawn, so a large corpus costs only what is used.

    Attributes:
        length: tokens of a document in a window.
        usable: numbers of the documents that may be long enough.
        found: tokens of the usable documents that were tokenised.
    """

    def __init__(
        self,
        documents: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        length: int,
        seed: int,
        bos: int | None,
    ) -> None:
        self._documents, self._tokenizer, self._bos = documents, tokenizer, bos
        self._generator = random.Random(seed)
        self._tokens: dict[int, list[int]] = {}
        self.usable = [i for i, text in enumerate(documents) if len(text) > length // 2]
        self.length = length - (bos is not None)
        self.found = 0

    def __iter__(self) -> Iterator[Window]:
        while self.usable:
            index = self._generator.choice(self.usable)
            if index not in self._tokens and not self._tokenise(index):
                self.usable.remove(index)
                continue
            ids = self._tokens[index]
            start = self._generator.randrange(len(ids) - self.length)
            begin = [] if self._bos is None else [self._bos]
            yield Window(index, start, begin + ids[start : start + self.length])

    def count(self) -> int:
        """Tokens of all usable documents."""
        for index in self.usable:
            if index not in self._tokens:
                self._tokenise(index)
        return self.found

    def _tokenise(self, index: int) -> bool:
        """Whether the document is longer than the window."""
        special = self._bos is None
        encoded = self._tokenizer(self._documents[index], verbose=False, add_special_tokens=special)
        self._tokens[index] = encoded["input_ids"]
        long = len(self._tokens[index]) > self.length
        self.found += len(self._tokens[index]) if long else 0
        return long


def packed_windows(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    held_out: int,
    samples: int,
    length: int,
    seed: int,
    bos: int | None,
    setting: str,
) -> Tensor:
    """Training tokens (samples, length): documents in random order, joined and cut.

    Documents are separated by the end-of-text token where there is one. The first `held_out`
    windows share no document with the rest; with `bos`, each window begins with it.

    Raises:
        LorapError: the documents hold fewer windows.
    """
    order = list(documents)
    random.Random(seed).shuffle(order)
    begin = [] if bos is None else [bos]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    windows: list[list[int]] = []
    buffer: list[int] = []
    for text in order:
        if len(windows) >= samples:
            break
        before = len(windows)
        encoded = tokenizer(text, verbose=False, add_special_tokens=False)["input_ids"]
        buffer += [*encoded, *end]
        while len(buffer) >= length - len(begin):
            windows.append(begin + buffer[: length - len(begin)])
            del buffer[: length - len(begin)]
        if before < held_out <= len(windows):
            del windows[held_out:]
            buffer.clear()
    if len(windows) < samples:
        raise LorapError(
            f"{setting} must be at most the {len(windows)} windows of {length} tokens that the "
            f"text holds, got {samples} x {length}"
        )
    return torch.tensor(windows[:samples], dtype=torch.long)


def digest(ids: Tensor) -> str:
    """sha256 of calibration tokens."""
    return hashlib.sha256(ids.contiguous().numpy().tobytes()).hexdigest()
