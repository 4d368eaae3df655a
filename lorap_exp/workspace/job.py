"""The folder of one job: what is finished is kept, what is cut or damaged is done again.

Every file is written atomically, with the digest of its content inside. A folder belongs to one
configuration; the same configuration goes on where it stopped, another one is refused with the
difference. Nothing is written before the folder's lock is held.
"""

import json
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from filelock import FileLock, Timeout

from lorap_exp.config import Config, identity
from lorap_exp.errors import Busy, LorapError, one_line, shown
from lorap_exp.workspace.digests import digest_folder, digest_json
from lorap_exp.workspace.files import remove_partials, write_json, write_text
from lorap_exp.workspace.progress import say
from lorap_exp.workspace.sealing import SEAL, seal, unseal

T = TypeVar("T")
PROBE = 1.0
"""Seconds to wait for a folder before it counts as in use: `read_status` holds it for a moment."""
WRONG_SHAPE = (KeyError, TypeError, ValueError, AttributeError, IndexError, LorapError)
"""What restoring a value raises when its file does not have the right shape."""
DESCRIPTIONS = ("README.md", "plan.json", "result.json")
"""Files in a saved model that tell of it."""


class Job:
    """An open job folder; `open_job` makes one.

    `of` stands for what its values are computed of.
    """

    def __init__(self, folder: Path, of: str | None = None) -> None:
        self.folder, self.of = folder, of
        self.model_folder = folder / "model"

    def under(self, of: Mapping[str, Any]) -> "Job":
        """The same job, whose values count only when they were computed of the same."""
        return Job(self.folder, digest_json(dict(of)))

    def settle(self, keep_model: bool) -> None:
        """Remove the model of a finished job that is not to be kept."""
        if not keep_model:
            self.discard(self.model_folder.name)

    def finish(self, result: Mapping[str, Any], keep_model: bool) -> None:
        """Keep the result, plain values."""
        self.write("result.json", result)
        self.settle(keep_model)

    def discard(self, *names: str) -> None:
        """Remove folders that are no longer needed."""
        for name in names:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            self._seal_of(name).unlink(missing_ok=True)

    def forget(self, *names: str) -> None:
        """Remove files, so that their steps are done again."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def reuse(self, name: str, restore: Callable[..., T], compute: Callable[[], T]) -> T:
        """A dataclass from `name`.json when it is there and sound, else computed and written."""
        found = self.restore(f"{name}.json", lambda raw: restore(**raw))
        if found is not None:
            return found
        value = compute()
        assert is_dataclass(value) and not isinstance(value, type)
        self.write(f"{name}.json", asdict(value))
        return value

    def restore(self, name: str, make: Callable[[Any], T]) -> T | None:
        """A value from a file that `write` made; None, with a warning, where it is damaged."""
        raw = self.read(name, sealed=True)
        if raw is None:
            return None
        try:
            return make(raw)
        except WRONG_SHAPE as error:
            say(f"  warning: '{self.folder / name}' is damaged and is made anew: {one_line(error)}")
            return None

    def read(self, name: str, *, sealed: bool = False) -> Any | None:
        """A file's content; None where there is none, or, with a warning, a damaged one.

        With `sealed`, a file without its digest counts as damaged.
        """
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            content, of = unseal(raw, strict=sealed)
        except (ValueError, RecursionError):
            say(f"  warning: '{path}' is damaged and is made anew")
            return None
        if sealed and self.of is not None and of != self.of:
            say(f"  warning: '{path}' is of other weights or texts and is made anew")
            return None
        return content

    def write(self, name: str, value: Any) -> None:
        """A value of plain types, with its digest."""
        write_json(self.folder / name, seal(value, self.of))

    def record(self, folder: Path) -> None:
        """Keep the digests of a saved model: a change from now on is seen."""
        self.write(self._seal_of(folder.name).name, digest_folder(folder))

    def digest(self, folder: Path) -> str | None:
        """Stands for the files of a saved model as they were recorded, without what was written
        about it once it was scored."""
        found = self.read(self._seal_of(folder.name).name)
        if found is None:
            return None
        return digest_json({file: of for file, of in found.items() if file not in DESCRIPTIONS})

    def changed(self, name: str) -> list[str]:
        """Files of a saved model that are not as they were recorded."""
        recorded = self.read(self._seal_of(name).name)
        if not isinstance(recorded, dict):
            return [f"{name} (its digests)"]
        folder = self.folder / name
        found = digest_folder(folder) if folder.is_dir() else {}
        differing = {file for file in {*recorded, *found} if recorded.get(file) != found.get(file)}
        return sorted(f"{name}/{file}" for file in differing)

    def bind(self, inputs: Mapping[str, Any]) -> None:
        """Do everything again where an input is not the one that the job began with."""
        before = self.read("inputs.json")
        if has_steps(self.folder):
            known = before if isinstance(before, dict) else {}
            changed = sorted(name for name in inputs if known.get(name) != inputs[name])
            if changed:
                say(
                    f"  warning: {', '.join(changed)} changed since '{self.folder}' was begun: "
                    f"everything is done again"
                )
                self.restart()
        self.write("inputs.json", dict(inputs))

    def adopt(self, other: Path) -> None:
        """Take over what was done in another job's folder, the models before what counts them."""
        self.restart()
        for path in sorted(other.iterdir(), key=lambda path: path.match("group_*.json")):
            path.replace(self.folder / path.name)
        other.rmdir()

    def restart(self) -> None:
        """Forget every step."""
        groups = [f"group_{number}" for number in self._groups()]
        files = ("selection", "spectra", "plan", "result", *groups)
        self.forget(*(f"{name}.json" for name in files))
        self.discard("model", "training", "scores", "choices", *groups)

    def mend(self, keep_model: bool) -> None:
        """Forget the steps whose files are damaged, with a warning; they are done again.

        So is a finished job whose model is wanted and was not kept; its scores are taken over.
        """
        remove_partials(self.folder, locked=True)
        for name in ("result.json", "selection.json"):
            if self.read(name, sealed=True) is None:
                self.forget(name)
        finished = (self.folder / "result.json").is_file()
        if finished and not self.model_folder.exists():
            if not keep_model:
                return
            say(f"  the model of '{self.folder}' was not kept")
        for number in self._groups():
            name = f"group_{number}"
            kept = name if (self.folder / name).is_dir() else self.model_folder.name
            changed = self.changed(kept)
            if not changed and self.read(f"{name}.json", sealed=True) is not None:
                return
            if changed:
                say(
                    f"  warning: of '{self.folder}' {', '.join(changed[:3])} changed since it was "
                    f"saved: the model is made anew"
                )
            self.forget(f"{name}.json", "plan.json", "result.json")
            self.discard(kept)
        self.forget("result.json")

    def _groups(self) -> list[int]:
        """Numbers of the groups of steps that are done, the last one first."""
        found = [path.stem.removeprefix("group_") for path in self.folder.glob("group_*.json")]
        return sorted((int(number) for number in found if number.isdecimal()), reverse=True)

    def _seal_of(self, name: str) -> Path:
        return self.folder / f"{name}_{SEAL}.json"


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
        refuse_other(job, cfg)
        raise Busy(f"output folder '{folder}' is in use by another process") from error
    try:
        if started(folder):
            refuse_other(job, cfg)
        _begin(job, cfg.dump(), command)
        with record_failure(folder):
            job.write("status.json", {"state": "running"})
            job.mend(cfg.keep_model)
            yield job
        job.write("status.json", {"state": "done"})
    finally:
        lock.release()


def record_refusal(folder: Path, raw: Any, command: str, error: LorapError) -> None:
    """Leave a wrong configuration and what is wrong with it, where no job works or has begun."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=PROBE):
            if not started(folder):
                job = Job(folder)
                _begin(job, raw, command)
                job.write("status.json", {"state": "failed", "error": str(error)})
    except Timeout:
        say(f"  '{folder}' is in use by another process: its files stay as they are")


def _begin(job: Job, config: Any, command: str) -> None:
    job.write("config.json", config)
    if command:
        write_text(job.folder / "command.txt", command + "\n")


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
            Job(folder).write("status.json", status)
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
    return has_steps(folder) or (folder / "choice.json").is_file()


def has_steps(folder: Path) -> bool:
    """A step towards the result is done."""
    names = ("selection.json", "group_*.json", "spectra.json", "result.json")
    return any(any(folder.glob(name)) for name in names)


def refuse_other(job: Job, cfg: Config) -> None:
    """Raise where a folder holds what another configuration left.

    Where `config.json` is damaged the result says which it was; without one, `Job.bind` does.
    """
    before = job.read("config.json")
    if not _is_config(before):
        if (job.folder / "config.json").exists():
            say(f"  warning: '{job.folder / 'config.json'}' is damaged and is made anew")
        result = job.read("result.json", sealed=True)
        before = result.get("config") if isinstance(result, dict) else None
        if not _is_config(before):
            return
    differences = list(_differences(identity(before), identity(cfg.dump())))
    if differences:
        raise LorapError(
            f"output folder '{job.folder}' holds another configuration's run: "
            f"{'; '.join(differences)}; choose another name=… or remove the folder"
        )


def _is_config(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and {"model", "method", "ratio"} <= value.keys()


def _differences(before: Any, now: Any, key: str = "") -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in sorted({*before, *now}):
            inner = f"{key}.{name}" if key else name
            yield from _differences(before.get(name), now.get(name), inner)
    elif before != now:
        yield f"{key} was {shown(before)}, now {shown(now)}"
