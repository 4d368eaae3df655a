"""Files that are written whole or not at all, also when other processes write the same ones."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = re.compile(r"(?:\.(\d+))?\.partial(\.\w+)?$")
"""The end of a partial file's name: the process that writes it, and the suffix."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; it takes the place of `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # a full or failing disk may say so only now
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """The text as UTF-8."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """The value as JSON; what JSON does not know, as text."""
    write_text(path, json.dumps(value, indent=1, default=str))


def is_partial(path: Path) -> bool:
    """Whether a file is one that a process is writing, or was when it was killed."""
    return PARTIAL.search(path.name) is not None


def remove_partials(folder: Path, *, locked: bool) -> None:
    """Remove what killed processes left half-written in a folder.

    Args:
        folder: where to look; below it too when it is locked.
        locked: nobody else writes there; else only files of this machine's dead processes go.
    """
    for path in list(folder.rglob("*.partial*") if locked else folder.glob("*.partial*")):
        found = PARTIAL.search(path.name)
        if found is None or not (locked or (found[1] and not _alive(int(found[1])))):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
