"""`data fetch`: the hub's data sets as a folder that `data=local` reads without a network.

Every file is written whole or not at all and entered in MANIFEST.json before the next one is
begun, so a fetch that was cut goes on where it stopped.
"""

import errno
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from filelock import FileLock, Timeout

from lorap_exp.data import wikitext
from lorap_exp.data.hub import DATASETS, TASK_DATASETS, UNREACHABLE
from lorap_exp.data.instructions import ALPACA
from lorap_exp.data.local import ALPACA_FILE, SPLITS, TASK_SPLITS, text_files
from lorap_exp.data.manifest import (
    FILE,
    Manifest,
    entry_of,
    read_manifest,
    state,
    write_manifest,
)
from lorap_exp.errors import LorapError, first_line
from lorap_exp.workspace.files import replacing
from lorap_exp.workspace.progress import bar, say

LICENCES = {
    "wikitext2": "CC BY-SA 3.0 / GFDL",
    "ptb": "LDC text: local evaluation only, do not redistribute",
    "c4": "ODC-BY",
    "alpaca": "CC BY 4.0",
    "piqa": "AFL-3.0",
    "hellaswag": "MIT",
    "winogrande": "CC-BY",
}
"""What the data sets' own pages say; tasks that are not named here refer to theirs."""


@dataclass(frozen=True)
class Wanted:
    """A file of the folder, the split of a hub data set it holds, and how it is written.

    `documents` asks for the first so many, which are streamed; null is the whole split.
    """

    name: str
    source: dict[str, Any]
    split: str
    licence: str
    write: Callable[[Dataset, Path], object]
    documents: int | None = None

    def load(self) -> Dataset:
        """The split's rows, from the hub or its cache."""
        arguments = self.source | {"split": self.split}
        if self.documents is None:
            return load_dataset(**arguments)
        return Dataset.from_list(
            list(load_dataset(**arguments, streaming=True).take(self.documents))
        )

    def is_there(self, folder: Path, manifest: Manifest) -> bool:
        """Listed, whole, and of the size that is asked for."""
        if state(folder, self.name, manifest) != "ok":
            return False
        return self.documents in (None, manifest[self.name].get("rows"))

    @property
    def origin(self) -> str:
        """The hub data set and configuration, for the manifest."""
        return " ".join(str(self.source[key]) for key in ("path", "name") if key in self.source)


def wanted_files(groups: Sequence[str], c4_documents: int) -> list[Wanted]:
    """What `data fetch` writes, in the order it is fetched."""
    files = []
    for text, write in (("wikitext2", _write_wikitext), ("ptb", _write_ptb)):
        for split in SPLITS:
            name = text_files(text, split)[0]
            files.append(Wanted(name, DATASETS[text], split, LICENCES[text], write))
    name = text_files("c4", "train")[0]
    files.append(Wanted(name, DATASETS["c4"], "train", LICENCES["c4"], _write_jsonl, c4_documents))
    for task, split in TASK_SPLITS.items():
        licence = LICENCES.get(task, "see the data set's page")
        name = f"tasks/{task}.parquet"
        files.append(Wanted(name, TASK_DATASETS[task], split, licence, Dataset.to_parquet))
    files.append(Wanted(ALPACA_FILE, {"path": ALPACA}, "train", LICENCES["alpaca"], _write_json))
    return [file for file in files if _group(file.name) in groups]


def fetch(folder: Path, groups: Sequence[str], c4_documents: int) -> None:
    """Fill a folder from the hub; what is there and matches its manifest is left alone.

    Raises:
        LorapError: the hub cannot be reached, the folder cannot be written, or the disk is full.
    """
    files = wanted_files(groups, c4_documents)
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / ".lock", timeout=0):
                _fetch(folder, files)
        except Timeout as error:
            raise LorapError(f"--folder '{folder}' is in use by another process") from error


def _fetch(folder: Path, files: Sequence[Wanted]) -> None:
    manifest = read_manifest(folder) if (folder / FILE).is_file() else {}
    for done, wanted in enumerate(bar("data fetch", "file")(files)):
        if wanted.is_there(folder, manifest):
            say(f"  {wanted.name}: there already")
            continue
        with _reaching(wanted, f"{done} of {len(files)} files are there and stay"):
            rows = wanted.load()
        path = folder / wanted.name
        with replacing(path) as partial:
            wanted.write(rows, partial)
        manifest[wanted.name] = entry_of(
            path,
            what=f"{wanted.origin}, {wanted.split}, {len(rows):,} rows",
            licence=wanted.licence,
            source=wanted.origin,
            rows=len(rows),
        )
        write_manifest(folder, manifest)
        say(f"  {wanted.name}: {len(rows):,} rows, {path.stat().st_size:,} bytes")


def _group(name: str) -> str:
    folder = name.partition("/")[0]
    return {"calibration": "c4", "instructions": "alpaca"}.get(folder, folder)


def _write_wikitext(rows: Dataset, path: Path) -> None:
    _write_lines(wikitext.lines_of_rows(rows["text"]), path)


def _write_ptb(rows: Dataset, path: Path) -> None:
    _write_lines((f" {row} " for row in rows["sentence"]), path)


def _write_jsonl(rows: Dataset, path: Path) -> None:
    _write_lines((json.dumps({"text": text}) for text in rows["text"]), path)


def _write_json(rows: Dataset, path: Path) -> None:
    path.write_text(json.dumps(rows.to_list(), indent=0, ensure_ascii=False), encoding="utf-8")


def _write_lines(lines: Iterable[str], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


@contextmanager
def _reaching(wanted: Wanted, progress: str) -> Iterator[None]:
    """The hub's failures as one sentence; a full disk is not one of them."""
    try:
        yield
    except UNREACHABLE as error:
        if (full := _disk_full(error)) is not None:
            raise full from error
        raise LorapError(
            f"data fetch needs '{wanted.origin}' ({wanted.split}) from the hub or its cache for "
            f"'{wanted.name}'; {progress}, the same command goes on from here; got: "
            f"{first_line(error)}"
        ) from error


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """A folder that cannot be written as one sentence."""
    try:
        yield
    except OSError as error:
        full = _disk_full(error)
        if full is not None:
            raise LorapError(
                f"data fetch: the disk is full; free some space for '{folder}' and for the hub's "
                f"cache (HF_HOME), then the same command goes on from here; got: {full}"
            ) from error
        raise LorapError(
            f"--folder must be a folder that can be written, got '{folder}': {error}"
        ) from error


def _disk_full(error: BaseException) -> OSError | None:
    """The error, or what caused it, when that is a disk without space."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None
