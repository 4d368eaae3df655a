"""Digests of files and folders, and the user's cache.

A file is read once: its digest is remembered in the cache beside the path, inode, size and times in
nanoseconds, and taken anew when one of them differs.
"""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from lorap_exp.workspace.files import write_json
from lorap_exp.workspace.progress import say

SETTLED = 2.0
"""Seconds after which a file's times tell a later change from an earlier one on any file system."""


def cache_folder() -> Path:
    """LORAP_CACHE, or `lorap_exp` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lorap_exp"
    return Path(os.environ.get("LORAP_CACHE", default))


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


def digest_json(value: Any) -> str:
    """sha256 of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def digest_folder(folder: Path) -> dict[str, str]:
    """The digest of every file of a folder, by name."""
    return {path.name: digest_file(path) for path in sorted(folder.iterdir()) if path.is_file()}
