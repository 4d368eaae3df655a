"""Where a report comes from: commands, versions and commits."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lorap_exp.errors import one_line
from lorap_exp.reporting.jobs import JobRecord
from lorap_exp.workspace.job import WRONG_SHAPE
from lorap_exp.workspace.progress import say


def commands(folder: Path, jobs: Sequence[JobRecord]) -> list[str]:
    """The command of a sweep as Hydra stored it, the last one that wrote here; otherwise that of
    each job."""
    alone = [job.command for job in jobs if job.command]
    path = folder / "multirun.yaml"
    if not path.is_file():
        return alone
    try:
        return _stored(yaml.safe_load(path.read_text(encoding="utf-8"))["hydra"])
    except (OSError, yaml.YAMLError, RecursionError, *WRONG_SHAPE) as error:
        say(f"  warning: '{path}' is damaged, its jobs are named instead: {one_line(error)}")
        return alone


def _stored(stored: dict[str, Any]) -> list[str]:
    overrides = stored.get("overrides") or {}
    words = [*(overrides.get("hydra") or []), *(overrides.get("task") or [])]
    words = [word for word in words if not word.startswith("hydra.mode=")]
    params = (stored.get("sweeper") or {}).get("params") or {}
    typed = {word.split("=", 1)[0].lstrip("+") for word in words}
    swept = [f"swept {key}={value}" for key, value in params.items() if key not in typed]
    return [shlex.join(["python", "-m", "lorap_exp", "-m", *words]), *swept]


def software(jobs: Sequence[JobRecord]) -> list[tuple[str, str]]:
    """(what, every value that occurs): commit, device, source of the weights, versions."""
    found: dict[str, dict[str, None]] = {}
    for result in (job.result for job in jobs if job.result is not None):
        facts = {"commit": result.commit or "-", "device": result.device, "model": result.source}
        for name, value in (facts | result.versions).items():
            found.setdefault(name, {})[value] = None
    return [(name, ", ".join(values)) for name, values in found.items()]
