"""The jobs of sweeps as they lie on disk: finished, failed or cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorap_exp.errors import LorapError
from lorap_exp.reporting.result import Result, read_result
from lorap_exp.workspace.job import Job
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
        paths = [path.parent for path in sorted(folder.glob("**/config.json"))]
        paths = [path for path in paths if (path / "status.json").is_file()]
        if not paths:
            raise LorapError(f"a sweep folder holds jobs with config.json, got '{folder}'")
        sweep = sweep_name(folder, folders)
        for path in paths:
            name = str(path.relative_to(folder))
            name = name if len(folders) == 1 else f"{sweep}/{name}"
            found.setdefault(path.resolve(), _read(path, name, sweep))
    return list(found.values())


def sweep_name(folder: Path, folders: Sequence[Path]) -> str:
    """The folder's own name, its whole path where another folder has the same name."""
    name = folder.resolve().name
    return name if [f.resolve().name for f in folders].count(name) == 1 else str(folder)


def _read(folder: Path, name: str, sweep: str) -> JobRecord:
    status = read_status(folder) or {}
    typed = folder / "command.txt"
    command = typed.read_text(encoding="utf-8").strip() if typed.is_file() else ""
    config = Job(folder).read("config.json") or {}
    try:
        if (result := read_result(folder / "result.json")) is not None:
            return JobRecord(name, sweep, folder, config, "done", result, command=command)
    except LorapError as unreadable:
        status = {"state": "failed", "error": str(unreadable)}
    states = {"failed": "failed", "cut": "failed", "interrupted": "interrupted"}
    state = states.get(status.get("state", ""), "missing")
    error = status.get("error") or "not finished"
    traceback = status.get("traceback", "")
    return JobRecord(
        name, sweep, folder, config, state, error=error, traceback=traceback, command=command
    )
