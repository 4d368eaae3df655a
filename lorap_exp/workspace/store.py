"""What jobs share: statistics, factorisations and scores of dense models, each computed once.

An entry is a file under a key that names everything its value depends on. It is written whole or
not at all, locked while it is computed, checked by digest when it is read, and rebuilt, with a
warning, when it is damaged. The folder may lie on a shared file system. The entries that were not
used for the longest time go when the size limit is reached, but none that a running job has pinned.
A store's folder has a mark. Whatever else lies in it is never touched: an entry is known by its
name and by the lock beside it.
"""

import hashlib
import json
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from safetensors.torch import load, save
from torch import Tensor

from lorap_exp.errors import LorapError
from lorap_exp.workspace.files import write_json, write_text
from lorap_exp.workspace.progress import say

T = TypeVar("T")
Key = Mapping[str, Any]
MARK = ".lorap_exp_store"
"""The file that tells a store from any other folder."""
PINS = ".pins"
KIND, ENTRY = re.compile(r"[a-z]+"), re.compile(r"[0-9a-f]{32}")
"""Names of the folders in a store, and of the entries in them."""


@dataclass(frozen=True)
class Entry:
    """An entry as listed: its kind, name and key, its size and the time it was last used."""

    kind: str
    name: str
    key: dict[str, Any]
    bytes: int
    used: float


SLACK = 50
"""A process looks whether the store is too large whenever it has written a 50th of the limit."""


class Store:
    """A folder of entries, of `limit` bytes and at most a 50th more for each process."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._pins: Pins | None = None
        self._written: int | None = None

    def open(self) -> "Store":
        """Make the folder with its mark, or take one that has it.

        Raises:
            LorapError: it cannot be made or written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not is_store(self.folder):
                write_text(self.folder / MARK, "The store of lorap_exp: what its jobs share.\n")
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise LorapError(
                f"store.folder must be a folder that can be written to, got '{self.folder}': "
                f"{error.strerror}"
            ) from error
        return self

    def json(self, kind: str, key: Key, compute: Callable[[], Any]) -> Any:
        """A value of plain JSON types: from the store, else computed and kept."""
        return self._get(
            kind, key, lambda: json.dumps(compute()).encode(), lambda raw: json.loads(raw)
        )

    def tensors(
        self, kind: str, key: Key, compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Named tensors, on the CPU: from the store, else computed and kept."""

        def packed() -> bytes:
            return save({n: t.detach().cpu().contiguous() for n, t in compute().items()})

        return self._get(kind, key, packed, load)

    def sound(self, kind: str, key: Key) -> bool:
        """Whether there is such an entry, undamaged."""
        return self._read(self._path(kind, key)) is not None

    def pin(self, kind: str, keys: Sequence[Key]) -> bool:
        """Keep these entries while this process lives, whoever prunes; false if one is gone."""
        paths = [self._path(kind, key) for key in keys]
        with self._quiet():
            if self._pins is None:
                self._pins = Pins(self.folder / PINS)
            self._pins.add(path.relative_to(self.folder).as_posix() for path in paths)
            return all(path.with_suffix(".json").is_file() for path in paths)

    def _quiet(self) -> FileLock:
        """Held while entries are removed, and while they are pinned."""
        return FileLock(self.folder / ".prune.lock")

    @contextmanager
    def lock(self, kind: str, key: Key) -> Iterator[None]:
        """Hold off other processes that want the same work."""
        path = self._path(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            yield

    def _get(
        self, kind: str, key: Key, compute: Callable[[], bytes], read: Callable[[bytes], T]
    ) -> T:
        path = self._path(kind, key)
        with self.lock(kind, key):
            raw = self._read(path)
            if raw is None:
                raw = compute()
                try:
                    self._write(path, key, raw)
                except OSError as error:
                    say(f"  warning: '{path}' is not stored, only this job has it: {error}")
        return read(raw)

    def _read(self, path: Path) -> bytes | None:
        """The bytes of a sound entry."""
        meta = path.with_suffix(".json")
        try:
            expected = json.loads(meta.read_text(encoding="utf-8"))["sha256"]
            raw = path.read_bytes()
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            if not meta.exists():  # never there, or pruned this moment
                return None
            expected, raw = "", b""
        if hashlib.sha256(raw).hexdigest() != expected:
            say(f"  warning: the stored '{path}' is damaged and is computed again")
            return None
        with suppress(OSError):  # pruned meanwhile, or another user's; the bytes are sound
            os.utime(meta)
        return raw

    def _write(self, path: Path, key: Key, raw: bytes) -> None:
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(raw)
        partial.replace(path)
        meta = {"key": key, "sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
        partial.write_text(json.dumps(meta, indent=1), encoding="utf-8")
        partial.replace(path.with_suffix(".json"))
        self._written = None if self._written is None else self._written + len(raw)
        if self._written is None or self._written >= self.limit // SLACK:
            self.prune(self.limit, keep=path)
            self._written = 0

    def _path(self, kind: str, key: Key) -> Path:
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        return self.folder / kind / f"{name}.bin"

    def _files(self, suffix: str) -> Iterator[Path]:
        """Files of a store's own making that end so."""
        for folder in [path for path in self.folder.iterdir() if KIND.fullmatch(path.name)]:
            if folder.is_dir() and not folder.is_symlink():
                yield from (path for path in list(folder.iterdir()) if _is_own(path, suffix))

    def entries(self) -> list[Entry]:
        """Everything that is there and readable, the least recently used first."""
        found = []
        for meta in self._files(".json"):
            try:
                raw = json.loads(meta.read_text(encoding="utf-8"))
                used = meta.stat().st_mtime
                entry = Entry(meta.parent.name, meta.stem, dict(raw["key"]), raw["bytes"], used)
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue  # another process is removing it, or it is damaged: `_read` says so
            if isinstance(entry.bytes, int):
                found.append(entry)
        return sorted(found, key=lambda entry: entry.used)

    def prune(self, limit: int, keep: Path | None = None) -> list[Entry]:
        """Remove what was not used longest, until at most `limit` bytes are left.

        `keep`, entries that running jobs have pinned and those in use this moment stay. What a
        killed process left half-written goes in any case.
        """
        removed = []
        with self._quiet():
            self._sweep()
            entries = self.entries()
            size = sum(entry.bytes for entry in entries)
            pinned = read_pins(self.folder / PINS)
            for entry in entries:
                if size <= limit:
                    break
                path = self.folder / entry.kind / f"{entry.name}.bin"
                if path == keep or f"{entry.kind}/{entry.name}.bin" in pinned:
                    continue
                with suppress(Timeout), FileLock(path.with_suffix(".lock"), timeout=0):
                    path.with_suffix(".json").unlink(missing_ok=True)
                    path.unlink(missing_ok=True)
                    size -= entry.bytes
                    removed.append(entry)
        return removed

    def _sweep(self) -> None:
        """Remove partial files, and values without their description, that nobody is writing."""
        for path in [*self._files(".bin.partial"), *self._files(".bin")]:
            meta = path.with_name(path.name.partition(".")[0] + ".json")
            with suppress(Timeout), FileLock(meta.with_suffix(".lock"), timeout=0):
                if path.suffix == ".partial" or not meta.is_file():
                    path.unlink(missing_ok=True)


class Pins:
    """Entries that this process needs: a file that names them, locked while the process lives."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._path = folder / f"{uuid.uuid4().hex}.json"
        self._lock = FileLock(self._path.with_suffix(".lock"))
        self._lock.acquire()
        self._names: set[str] = set()

    def add(self, names: Iterable[str]) -> None:
        self._names |= set(names)
        write_json(self._path, sorted(self._names))


def read_pins(folder: Path) -> set[str]:
    """What living processes have pinned; pins of dead ones are removed."""
    pinned: set[str] = set()
    for path in folder.glob("*.json"):
        lock = FileLock(path.with_suffix(".lock"), timeout=0)
        try:
            with lock:
                path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)
        except Timeout:
            with suppress(OSError, ValueError):
                pinned |= set(json.loads(path.read_text(encoding="utf-8")))
    return pinned


def _is_own(path: Path, suffix: str) -> bool:
    """Whether a store made this file: its name is that of an entry, whose lock lies beside it."""
    name = path.name.removesuffix(suffix)
    fits = path.name.endswith(suffix) and ENTRY.fullmatch(name) is not None
    return fits and path.is_file() and path.with_name(f"{name}.lock").is_file()


def is_store(folder: Path) -> bool:
    """Whether a folder has the mark of a store."""
    return (folder / MARK).is_file()


def table(entries: list[Entry], width: int | None = None) -> str:
    """One line for each entry, the least recently used first, and the sum.

    Lines longer than `width` are cut.
    """
    lines = [f"{'kind':<11} {'MiB':>9}  {'last used':<16}  key"]
    for entry in entries:
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        key = ", ".join(f"{name}={str(value)[:24]}" for name, value in entry.key.items())
        line = f"{entry.kind:<11} {entry.bytes / 2**20:>9.2f}  {used:<16}  {key}"
        if width is not None and len(line) > width:
            line = f"{line[: width - 1]}…"
        lines.append(line)
    size = sum(entry.bytes for entry in entries)
    return "\n".join([*lines, f"{len(entries)} entries, {size / 2**20:.1f} MiB"])
