"""The folder of one job: what is finished is kept, what is cut is done again.

Every file is written atomically. A folder belongs to one configuration; the same configuration
goes on where it stopped, another one is refused with the difference.
"""

import json
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from lorap_exp.config import Config, identity
from lorap_exp.errors import Busy, LorapError
from lorap_exp.workspace.files import write_json, write_text
from lorap_exp.workspace.progress import say

T = TypeVar("T")
PROBE = 1.0
"""Seconds to wait for a folder before it counts as in use: `read_status` holds it for a moment."""


class Job:
    """An open job folder; `open_job` makes one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model_folder = folder / "model"

    def settle(self, keep_model: bool) -> None:
        """What a finished job still has to do for who asks for it again."""
        if not keep_model:
            self.discard(self.model_folder.name)
        elif not self.model_folder.exists():
            say(f"  its model was not kept: remove '{self.folder}' to make it anew")

    def finish(self, result: Mapping[str, Any], keep_model: bool) -> None:
        """Keep the result, plain values."""
        self.write("result.json", result)
        self.settle(keep_model)

    def discard(self, *names: str) -> None:
        """Remove folders that are no longer needed."""
        for name in names:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def reuse(self, name: str, restore: Callable[..., T], compute: Callable[[], T]) -> T:
        """A dataclass from `name`.json when it is there, else computed and written."""
        raw = self.read(f"{name}.json")
        if raw is not None:
            return restore(**raw)
        value = compute()
        assert is_dataclass(value) and not isinstance(value, type)
        self.write(f"{name}.json", asdict(value))
        return value

    def read(self, name: str) -> Any | None:
        """A file's content; None where there is none, or, with a warning, a damaged one."""
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            say(f"  warning: '{path}' is damaged and is made anew")
            return None

    def write(self, name: str, value: Any) -> None:
        write_json(self.folder / name, value)


@contextmanager
def open_job(folder: Path, cfg: Config, wait: bool = False, command: str = "") -> Iterator[Job]:
    """Lock the folder, refuse another configuration, and keep `status.json` true.

    `command`, when there is one, is left in `command.txt`.

    Raises:
        Busy: another process works here on the same configuration, and `wait` is false.
        LorapError: the folder holds another configuration's run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(folder)
    lock = FileLock(folder / ".lock", timeout=-1 if wait else PROBE)
    try:
        lock.acquire()
    except Timeout as error:
        _refuse_other(job, cfg)
        raise Busy(f"output folder '{folder}' is in use by another process") from error
    try:
        if started(folder):
            _refuse_other(job, cfg)
        job.write("config.json", cfg.dump())
        if command:
            write_text(folder / "command.txt", command + "\n")
        job.write("status.json", {"state": "running"})
        with record_failure(folder):
            yield job
        job.write("status.json", {"state": "done"})
    finally:
        lock.release()


def find_twin(folder: Path, cfg: Config) -> Path | None:
    """Another job of the sweep that finished with the same settings, however they were given."""
    if (folder / "config.json").exists():
        return None
    wanted = identity(cfg.dump())
    for path in sorted(folder.parent.glob("*/result.json")):
        other = Job(path.parent).read("config.json")
        if isinstance(other, dict) and identity(other) == wanted:
            return path.parent
    return None


def describe_state(folder: Path, cfg: Config) -> str:
    """What the same command would do with a job's folder; nothing is changed."""
    job = Job(folder)
    if started(folder):
        try:
            _refuse_other(job, cfg)
        except LorapError as error:
            return f"refused: {error}"
    if job.read("result.json") is not None:
        return "done"
    if (status := read_status(folder)) is None:
        return "would run"
    found = sorted(path.stem for path in folder.glob("group_*.json"))
    found += sorted(path.stem for path in (folder / "scores").glob("*.json"))
    kept = f"; kept: {', '.join(found)}" if found else ""
    reason = f": {status['error']}" if status.get("error") else ""
    return f"{status['state']}{reason}{kept}"


def read_status(folder: Path) -> dict[str, Any] | None:
    """`status.json`; a job that says it runs but that no process holds was cut."""
    status: dict[str, Any] | None = Job(folder).read("status.json")
    if status is not None and status["state"] == "running":
        try:
            with FileLock(folder / ".lock", timeout=0):
                return {"state": "cut", "error": "its process ended without a word (killed?)"}
        except Timeout:
            return status
    return status


@contextmanager
def record_failure(folder: Path) -> Iterator[None]:
    """Leave the reason of a failure in `status.json`, and let it pass on."""
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        status = {"state": "interrupted" if interrupted else "failed", "error": _reason(error)}
        if not isinstance(error, LorapError):
            status["traceback"] = "".join(traceback.format_exception(error)[-6:])
        try:
            write_json(folder / "status.json", status)
        except OSError as unwritable:
            say(f"{folder}: the reason of the failure cannot be written: {unwritable}")
        raise


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    if isinstance(error, LorapError):
        return text
    if isinstance(error, KeyboardInterrupt):
        return "interrupted by Ctrl-C; the same command goes on"
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"


def started(folder: Path) -> bool:
    """Something is there that only the same configuration may go on from."""
    names = ("selection.json", "group_*.json", "spectra.json", "result.json")
    return any(any(folder.glob(name)) for name in names)


def _refuse_other(job: Job, cfg: Config) -> None:
    before = job.read("config.json")
    if before is None:
        return
    differences = list(_differences(identity(before), identity(cfg.dump())))
    if differences:
        raise LorapError(
            f"output folder '{job.folder}' holds another configuration's run: "
            f"{'; '.join(differences)}; choose another name=… or remove the folder"
        )


def _differences(before: Any, now: Any, key: str = "") -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in sorted({*before, *now}):
            inner = f"{key}.{name}" if key else name
            yield from _differences(before.get(name), now.get(name), inner)
    elif before != now:
        yield f"{key} was {before!r}, now {now!r}"
