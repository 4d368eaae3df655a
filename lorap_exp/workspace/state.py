"""What became of a job, from its folder alone; nothing is changed there."""

from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lorap_exp.config import Config, identity
from lorap_exp.errors import LorapError
from lorap_exp.workspace.job import Job, refuse_other, started


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
            refuse_other(job, cfg)
        except LorapError as error:
            return f"refused: {error}"
    if job.read("result.json", sealed=True) is not None:
        return "done"
    if (status := read_status(folder)) is None:
        return "would run"
    groups = sorted(path.name for path in folder.glob("group_*.json"))
    found = [Path(name).stem for name in groups if job.read(name, sealed=True) is not None]
    found += sorted(path.stem for path in (folder / "scores").glob("*.json"))
    kept = f"; kept: {', '.join(found)}" if found else ""
    reason = f": {status['error']}" if status.get("error") else ""
    return f"{status['state']}{reason}{kept}"


def read_status(folder: Path) -> dict[str, Any] | None:
    """`status.json`; a job that says it runs but that no process holds was cut."""
    status = Job(folder).read("status.json")
    if not isinstance(status, dict) or not isinstance(status.get("state"), str):
        return None
    if status["state"] == "running":
        try:
            with FileLock(folder / ".lock", timeout=0):
                return {"state": "cut", "error": "its process ended without a word (killed?)"}
        except Timeout:
            return status
        except OSError as error:  # a folder that may only be read
            return {"state": "running", "error": f"whether it runs cannot be seen: {error}"}
    return status
