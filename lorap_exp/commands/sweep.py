"""A sweep ends in its table, whatever became of its jobs.

Hydra's own `on_multirun_end` is not reached when a job fails, so the command line closes the sweep
that `Opening` saw begin.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


@dataclass(frozen=True)
class Open:
    """A sweep that runs: its folder, and how it is logged."""

    folder: Path
    wandb: str
    project: str


begun: list[Open] = []
"""The sweep of this process."""


class Opening(Callback):
    """Notes the sweep that begins."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        logging = config.logging
        begun.append(Open(Path(config.hydra.sweep.dir), logging.wandb, logging.project))


def close_sweep() -> None:
    """Write and print the report of the sweep that began, and log it as a run of its own."""
    if not begun:
        return
    sweep = begun.pop()
    if not any(sweep.folder.glob("**/status.json")):
        return
    from lorap_exp.commands.report import show

    mode: Any = None if sweep.wandb == "disabled" else sweep.wandb
    print(show([sweep.folder], wandb=mode, project=sweep.project))
