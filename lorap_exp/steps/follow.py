"""What the other processes of `accelerate launch` do while process 0 runs a job: train with it."""

import tempfile
from pathlib import Path

import torch

from lorap_exp.config import Config
from lorap_exp.methods.selection import Selection
from lorap_exp.models.checkpoint import load
from lorap_exp.steps.compress import Compression, Dense, replace_layers
from lorap_exp.steps.prepare import prepare
from lorap_exp.workspace.job import Job
from lorap_exp.workspace.progress import Meter
from lorap_exp.workspace.team import Team


def follow(cfg: Config, folder: Path, team: Team) -> None:
    """Train whenever process 0 does, until it says that the job has ended.

    Files of the job are read, never written.
    """
    job = Job(folder)
    while (word := team.hear()) != "end":
        device = team.device or torch.device("cpu")
        with tempfile.TemporaryDirectory() as own:
            inputs = prepare(cfg, Job(Path(own)), device)
        if word == "replace":
            dense = Dense(cfg, inputs, Meter(inputs.device, quiet=True))
            selection = Selection.restore(**_read(job, "selection.json"))
            replace_layers(cfg, inputs, job, dense, selection)
        else:
            assert inputs.stack.recovery is not None
            model = load(folder / "compressed", inputs.device, getattr(torch, cfg.dtype))
            plan = Compression.from_dict(_read(job, "compression.json")).plan
            inputs.stack.recovery.recover(model, plan, inputs.examples, folder / "recovery", iter)


def _read(job: Job, name: str) -> dict[str, object]:
    found = job.read(name)
    assert found is not None, f"process 0 wrote {name} before it called the others"
    return dict(found)
