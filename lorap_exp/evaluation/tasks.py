"""Descriptions of tasks for lm-eval: its own files, with the data source's questions.

Tasks of our table are found by their file; any other by name in lm-eval's registry, whose
thousands of files take it some 15 seconds to read, once.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

import lm_eval
import yaml
from lm_eval.tasks import TaskManager

from lorap_exp.data.source import DataSource
from lorap_exp.data.tasks import TASKS
from lorap_exp.errors import LorapError
from lorap_exp.workspace.progress import say

BUILTIN = Path(lm_eval.__file__).parent / "tasks"


def check_tasks(tasks: Sequence[str], data: DataSource) -> None:
    """Every task exists, and the source has its questions.

    Raises:
        LorapError: with the setting, what is allowed and what was given.
    """
    single = [name for name, task in TASKS.items() if task.split is not None]
    for name in tasks:
        if data.name != "hub" and name not in single:
            raise LorapError(
                f"evaluation.zero_shot.tasks must be among {', '.join(single)} with "
                f"data={data.name}; the others come from data=hub, got '{name}'"
            )
        if name not in TASKS and name not in registry().task_index:
            near = get_close_matches(name, [*TASKS, *registry().task_index], n=3)
            hint = f" (near: {', '.join(near)})" if near else ""
            raise LorapError(
                f"evaluation.zero_shot.tasks must be {', '.join(TASKS)} or any other task of "
                f"lm-eval {lm_eval.__version__}, got '{name}'{hint}"
            )


def write_tasks(tasks: Sequence[str], data: DataSource, folder: Path) -> None:
    """One file for each task whose data set the source replaces: lm-eval's own, included."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in tasks:
        replaced = data.task(name)
        if replaced is not None:
            settings = {"include": str(BUILTIN / TASKS[name].file), "task": name} | replaced
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))


def manager(task: str, folder: Path) -> TaskManager:
    """The one that knows a task, reading as few files as possible."""
    if (folder / f"{task}.yaml").is_file():
        return TaskManager(include_path=str(folder), include_defaults=False)
    if task in TASKS:
        own = BUILTIN / TASKS[task].file
        return TaskManager(include_path=str(own.parent), include_defaults=False)
    return registry()


@lru_cache(maxsize=1)
def registry() -> TaskManager:
    """Everything that lm-eval brings."""
    say("  reading lm-eval's registry of tasks")
    return TaskManager()
