"""Digests of what a model is: its files by content, its tokenizer by what it does.

A file is read once: its digest is remembered in the user's cache beside the path, inode, size and
times in nanoseconds, and taken anew when one of them differs.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorap_exp.models.headers import weight_files
from lorap_exp.models.wheels import cache_folder
from lorap_exp.workspace.files import write_json
from lorap_exp.workspace.progress import say

SETTLED = 2.0
"""Seconds after which a file's times tell a later change from an earlier one on any file system."""
SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def digest_file(path: Path) -> str:
    """sha256 of a file's bytes, from memory where the file has not changed since."""
    path = path.resolve()
    stat = path.stat()
    key = [str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    note = (
        cache_folder() / "digests" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    )
    known = _known(note)
    if known.get("file") == key and isinstance(known.get("sha256"), str):
        return str(known["sha256"])
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time() - max(stat.st_mtime, stat.st_ctime) > SETTLED:
        try:
            write_json(note, {"file": key, "sha256": found})
        except OSError as error:
            say(f"  warning: the digest of '{path}' is not remembered: {error}")
    return found


def _known(note: Path) -> dict[str, Any]:
    try:
        raw = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return raw if isinstance(raw, dict) else {}


def digest_weights(folder: Path) -> dict[str, str]:
    """The digest of every weight file of a model's folder, by name."""
    return {path.name: digest_file(path) for path in weight_files(folder)}


def digest_saved(folder: Path) -> dict[str, str]:
    """The digest of every file of a saved model, by name."""
    return {path.name: digest_file(path) for path in sorted(folder.iterdir()) if path.is_file()}


def changed(folder: Path, expected: Mapping[str, str]) -> list[str]:
    """Files of a saved model that are not as they were when it was saved."""
    return [
        name
        for name, digest in expected.items()
        if not (folder / name).is_file() or digest_file(folder / name) != digest
    ]


def digest_json(value: Any) -> str:
    """sha256 of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def digest_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Stands for everything that turns text into tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    return digest_json([type(tokenizer).__name__, rules, tokenizer.special_tokens_map])
