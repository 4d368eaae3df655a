"""The jobs of sweeps as they lie on disk: finished, failed or cut."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from lorap_exp.errors import LorapError
from lorap_exp.reporting.result import Result, read_result
from lorap_exp.reporting.table import cells
from lorap_exp.workspace.job import WRONG_SHAPE, Job
from lorap_exp.workspace.state import read_status


@dataclass(frozen=True)
class JobRecord:
    """One job: where it lies, what was asked for, and what came of it.

    `state` is done, failed, interrupted or missing; `error` and `traceback` say why there is no
    result; `command` runs the job alone.
    """

    name: str
    sweep: str
    folder: Path
    config: dict[str, Any]
    state: str
    result: Result | None = None
    error: str = ""
    traceback: str = ""
    command: str = ""

    def read(self, name: str) -> Any | None:
        """A further JSON file of the job, None where there is none."""
        return Job(self.folder).read(name)


def find_jobs(folders: Sequence[Path]) -> list[JobRecord]:
    """Every job below the folders, once; named by its sweep too when there are several.

    Raises:
        LorapError: a folder holds no job.
    """
    found: dict[Path, JobRecord] = {}
    for folder in folders:
        paths = _job_folders(folder)
        if not paths:
            raise LorapError(f"a sweep folder holds jobs with config.json, got '{folder}'")
        sweep = sweep_name(folder, folders)
        for path in paths:
            name = str(path.relative_to(folder))
            name = name if len(folders) == 1 else f"{sweep}/{name}"
            found.setdefault(path.resolve(), _read(path, name, sweep))
    return list(found.values())


def _job_folders(folder: Path) -> list[Path]:
    """Folders that a job has written to, whatever became of its files."""
    signs = ("status.json", "result.json", "command.txt")
    found = {path.parent for name in signs for path in folder.glob(f"**/{name}")}
    found -= {path / "model" for path in found}  # a saved model says of itself what its job says
    return sorted(path for path in found if (path / ".lock").exists() or _has_config(path))


def _has_config(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def tell_models_apart(jobs: Sequence[JobRecord]) -> list[JobRecord]:
    """The jobs, with longer names for models of different places that share one."""
    places: dict[str, dict[tuple[str, str], None]] = {}
    for job in jobs:
        places.setdefault(_model(job, "name"), {})[_place(job)] = None
    names = {
        (name, place): label
        for name, found in places.items()
        if len(found) > 1
        for place, label in zip(found, _labels(name, list(found)), strict=True)
    }
    return [_renamed(job, names.get((_model(job, "name"), _place(job)))) for job in jobs]


def _labels(name: str, places: Sequence[tuple[str, str]]) -> list[str]:
    """The end of each path that no other has, with the revision where paths are equal."""
    parts = [PurePosixPath(path).parts for path, _ in places]
    for size in range(1, max(map(len, parts), default=0) + 1):
        labels = ["/".join(part[-size:]) or name for part in parts]
        if len(set(labels)) == len({path for path, _ in places}):
            break
    return [
        f"{label} ({revision})" if labels.count(label) > 1 and revision else label
        for label, (_, revision) in zip(labels, places, strict=True)
    ]


def _place(job: JobRecord) -> tuple[str, str]:
    return _model(job, "path"), _model(job, "revision")


def _model(job: JobRecord, key: str) -> str:
    model = job.config.get("model")
    return str(model.get(key) or "") if isinstance(model, dict) else ""


def _renamed(job: JobRecord, name: str | None) -> JobRecord:
    if name is None:
        return job
    config = job.config | {"model": job.config["model"] | {"name": name}}
    result = None if job.result is None else replace(job.result, config=config)
    return replace(job, config=config, result=result)


def sweep_name(folder: Path, folders: Sequence[Path]) -> str:
    """The folder's own name, its whole path where another folder has the same name."""
    name = folder.resolve().name
    return name if [f.resolve().name for f in folders].count(name) == 1 else str(folder)


def _read(folder: Path, name: str, sweep: str) -> JobRecord:
    """A job as it is on disk; a damaged file makes it a failed one, and says so."""
    job, status = Job(folder), read_status(folder) or {}
    typed = folder / "command.txt"
    command = typed.read_text(encoding="utf-8", errors="replace").strip() if typed.is_file() else ""
    config = _whole(job.read("config.json"))
    found = JobRecord(name, sweep, folder, config or {}, "missing", error="not finished")
    found = replace(found, command=command)
    if config is None:
        return replace(found, state="failed", error="its config.json is damaged or missing")
    try:
        if (result := read_result(folder / "result.json")) is not None:
            cells(result)
            return replace(found, state="done", result=result, error="")
    except LorapError as unreadable:
        return replace(found, state="failed", error=str(unreadable))
    except WRONG_SHAPE as error:
        damaged = f"'{folder / 'result.json'}' is damaged: {type(error).__name__}: {error}"
        return replace(found, state="failed", error=damaged)
    states = {"failed": "failed", "cut": "failed", "interrupted": "interrupted"}
    return replace(
        found,
        state=states.get(status.get("state", ""), "missing"),
        error=str(status.get("error") or "not finished"),
        traceback=str(status.get("traceback", "")),
    )


def _whole(config: Any) -> dict[str, Any] | None:
    """A configuration as far as a report reads it; None where it is none.

    A refused job's values may be wrong, but its sections are there.
    """
    if not isinstance(config, dict):
        return None
    sections = [config.get(name) for name in ("model", "method")]
    return config if all(s is None or isinstance(s, dict) for s in sections) else None
