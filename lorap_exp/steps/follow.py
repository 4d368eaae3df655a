"""What ranks above 0 of `accelerate launch` do while rank 0 runs a job: train with it."""

import tempfile
from functools import partial
from pathlib import Path

import torch

from lorap_exp.config import Config
from lorap_exp.models.checkpoint import load
from lorap_exp.models.source import Source
from lorap_exp.planning.edits import Plan
from lorap_exp.steps.compress import open_dense, whole_part
from lorap_exp.steps.prepare import Inputs, open_basis, prepare
from lorap_exp.workspace.job import Job
from lorap_exp.workspace.progress import Meter
from lorap_exp.workspace.team import Team


def follow(cfg: Config, folder: Path, team: Team) -> None:
    """Train whenever rank 0 does, until it says that the job has ended.

    Files of the job are read, never written.
    """
    job = Job(folder)
    while (word := team.hear()) != "end":
        number = int(word.removeprefix("group "))
        device = team.device or torch.device("cpu")
        with tempfile.TemporaryDirectory() as own:
            scratch = Job(Path(own))
            inputs = prepare(cfg, open_basis(cfg, scratch, device), scratch)
        name, step = inputs.stack.groups()[number][0]
        before = folder / f"group_{number - 1}"
        reload = partial(incoming, cfg, inputs, before)
        planned = job.read(f"planned_{number}.json")
        assert planned is not None, "rank 0 wrote the plan before it called the others"
        step.apply(
            whole_part(cfg, inputs, job, number, reload),
            Plan.from_dict(planned[name]).edits,
            None,
            {},
        )


def incoming(cfg: Config, inputs: Inputs, saved: Path) -> Source:
    """The model as the group gets it: saved by rank 0, or the original one."""
    if (saved / "config.json").is_file():
        return Source(load(saved, inputs.device, getattr(torch, cfg.dtype)))
    return open_dense(cfg, inputs, Meter(inputs.device, quiet=True))
