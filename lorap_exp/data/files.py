"""Texts in files: plain text, or the `text` of each row of JSON lines and parquet."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from lorap_exp.errors import LorapError, one_line

ROWS = (".jsonl", ".jsonl.gz", ".parquet")
"""Files whose rows have a `text`."""
NO_TEXT = (".json", ".csv", ".tsv", ".xml", ".html", ".htm", ".ipynb", ".yaml", ".yml")
"""Files that are UTF-8 but hold more than a text; what is not UTF-8 is known by its bytes."""


def read_documents(path: Path, setting: str) -> list[str] | str:
    """The texts of rows, or the whole of a plain text, also gzipped.

    Raises:
        LorapError: the file is not there, is of another kind, not UTF-8, or a row has no text.
    """
    name = path.name.lower()
    if not path.is_file():
        raise LorapError(f"{setting} must name existing text files, got '{path}'")
    if name.removesuffix(".gz").endswith(NO_TEXT):
        raise LorapError(
            f"{setting} must be plain text or rows with a text ({', '.join(ROWS)}), got '{path}'"
        )
    if name.endswith(".parquet"):
        return texts(read_parquet(path, setting).to_dict("records"), path, setting)
    content = decode(read_bytes(path, setting), path, setting)
    if name.endswith((".jsonl", ".jsonl.gz")):
        return texts(json_lines(content, path, setting), path, setting)
    return content


def read_bytes(path: Path, setting: str) -> bytes:
    """A file's bytes, unpacked when its name ends in .gz."""
    raw = path.read_bytes()
    if path.suffix != ".gz":
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise LorapError(f"{setting}: '{path}' must be gzipped, got: {one_line(error)}") from error


def decode(raw: bytes, path: Path, setting: str) -> str:
    """UTF-8, with or without its mark."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LorapError(
            f"{setting} must be UTF-8 text, got '{path}' with byte 0x{raw[error.start]:02x} at "
            f"{error.start}"
        ) from error
    if "\0" in text:
        raise LorapError(f"{setting} must be text, got '{path}' with zero bytes")
    return text


def json_lines(content: str, path: Path, setting: str) -> Iterator[Any]:
    """The value of each line that is not blank."""
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise LorapError(
                    f"{setting}: line {number} of '{path}' must be JSON, got: {one_line(error)}"
                ) from error


def read_parquet(path: Path, setting: str) -> pd.DataFrame:
    """The table of a parquet file."""
    try:
        return pd.read_parquet(path)
    except Exception as error:  # of several libraries, for whatever is wrong with the file
        raise LorapError(f"{setting}: '{path}' must be parquet, got: {one_line(error)}") from error


def texts(rows: Iterable[Any], path: Path, setting: str) -> list[str]:
    """The `text` of each row."""
    found = []
    for number, row in enumerate(rows, start=1):
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise LorapError(
                f"{setting}: row {number} of '{path}' must have a text, got {str(row)[:60]!r}"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise LorapError(
                f"{setting}: row {number} of '{path}' must be UTF-8 text, got half of a surrogate "
                f"pair at character {error.start}"
            ) from error
        found.append(text)
    return found
