"""Calibration sequences: a random document longer than the window, then a random window of it.

The order of draws follows LoRAP's public code (arXiv 2404.09695).
"""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lorap_exp.config import CalibrationConfig
from lorap_exp.data import files
from lorap_exp.data.embedded import Embedded
from lorap_exp.data.source import DataSource
from lorap_exp.errors import LorapError

SPECIAL = 2
"""Tokens that a tokenizer may put around a document."""


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

    Documents are tokenised as they are drawn, so a large corpus costs only what is used.

    Raises:
        LorapError: the documents longer than the window hold fewer tokens than asked for.
    """
    generator = random.Random(seed)
    tokens: dict[int, list[int]] = {}
    usable = [i for i, text in enumerate(documents) if len(text) > length // 2]
    available = 0
    windows: list[list[int]] = []
    special, begin = bos is None, [] if bos is None else [bos]
    length -= len(begin)
    most = sum(len(documents[i].encode()) + SPECIAL for i in usable)  # a token has a byte or more
    drawn = samples if samples * length <= most else 0  # else what there is is counted, and refused
    while len(windows) < drawn and usable:
        index = generator.choice(usable)
        if index not in tokens:
            tokens[index] = tokenizer(documents[index], verbose=False, add_special_tokens=special)[
                "input_ids"
            ]
            if len(tokens[index]) <= length:
                usable.remove(index)
                continue
            available += len(tokens[index])
        start = generator.randrange(len(tokens[index]) - length)
        windows.append(begin + tokens[index][start : start + length])
    if available < samples * length:
        for index in usable:
            if index not in tokens:
                found = len(
                    tokenizer(documents[index], verbose=False, add_special_tokens=special)[
                        "input_ids"
                    ]
                )
                available += found if found > length else 0
    if available < samples * length:
        raise LorapError(
            f"{setting} must be at most the {available} tokens of "
            f"the documents longer than {length} tokens, got {samples} x {length}"
        )
    return torch.tensor(windows, dtype=torch.long)


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
