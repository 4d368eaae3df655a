"""MANIFEST.json of a data folder: for each file its bytes, sha256, what it is and its licence."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lorap_exp.errors import LorapError, one_line
from lorap_exp.workspace.files import write_json

Manifest = dict[str, dict[str, Any]]
FILE = "MANIFEST.json"
SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def read_manifest(folder: Path) -> Manifest:
    """The entries by file name, relative to the folder.

    Raises:
        LorapError: there is no manifest, or it is not one.
    """
    path = folder / FILE
    if not path.is_file():
        raise LorapError(
            f"data.folder must hold {FILE}, got '{folder}': `data fetch` fills one from the hub; "
            f"data=embedded needs none"
        )
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LorapError(f"data.folder: '{path}' must be JSON, got: {one_line(error)}") from error
    listed = isinstance(entries, dict) and all(
        isinstance(entry, dict) and SHA256.fullmatch(str(entry.get("sha256")))
        for entry in entries.values()
    )
    if not listed:
        raise LorapError(f"data.folder: '{path}' must map each file to an entry with its sha256")
    for name in entries:
        parts = PurePosixPath(name).parts
        if not parts or name[0] == "/" or ".." in parts or not name.isprintable():
            raise LorapError(
                f"data.folder: '{path}' must name files inside its folder, in visible characters, "
                f"got {name!r}"
            )
    return entries


def digest_of(entry: Mapping[str, Any]) -> str:
    """The sha256 that an entry says, in lower case."""
    return str(entry["sha256"]).lower()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write all of it or nothing."""
    write_json(folder / FILE, dict(sorted(manifest.items())))


def entry_of(path: Path, **about: Any) -> dict[str, Any]:
    """The entry of a file that is there."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path), **about}


def state(folder: Path, name: str, manifest: Manifest) -> str:
    """`ok`, `damaged` or `missing`: a listed file as it is on disk now."""
    path = folder / name
    if name not in manifest or not path.is_file():
        return "missing"
    return "ok" if sha256_of(path) == digest_of(manifest[name]) else "damaged"


def sha256_of(path: Path) -> str:
    """Digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
