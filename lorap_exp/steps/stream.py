"""Compression of a model that is never whole in memory: blocks come from disk and go back to it."""

from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from lorap_exp.calibration.survey import survey
from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.methods.engine import rewrite_blocks
from lorap_exp.methods.planner import plan_group
from lorap_exp.models.checkpoint import as_compressed, count_parameters, export, load_config, save
from lorap_exp.models.headers import weight_files
from lorap_exp.models.layout import settings_of
from lorap_exp.models.loading import find_source
from lorap_exp.models.streaming import StreamedSource
from lorap_exp.planning.edits import Plan
from lorap_exp.steps.prepare import Inputs
from lorap_exp.workspace.job import Job
from lorap_exp.workspace.progress import Meter, bar, say

SHARE = 0.6
"""Of the free memory: weights beyond it are streamed when `stream` is auto."""


def streams(cfg: Config, inputs: Inputs) -> bool:
    """Whether the model is streamed.

    Raises:
        LorapError: it was asked for and cannot be.
    """
    if cfg.stream is False or inputs.plan.is_dense:
        return False
    if cfg.stream == "auto" and (cfg.model.random is not None or not too_large(cfg)):
        return False
    if cfg.model.random is not None:
        raise LorapError("stream must be false for a random model, which has no files, got true")
    groups = inputs.stack.groups()
    if len(groups) > 1 or groups[0][0][1].reach == "model":
        raise LorapError(
            f"stream must be false for method {cfg.method.name}: layer removal and training need "
            f"the whole model in memory"
        )
    for name, step in groups[0]:
        probes = step.survey(inputs.dense, inputs.plan.edits)
        if step.ends or any(hasattr(probe, "measure") for probe in probes):
            raise LorapError(
                f"stream must be false for method {cfg.method.name}: its stage {name} measures or "
                f"changes the whole model at once"
            )
    if cfg.export != "factored":
        raise LorapError(f"export must be factored when the model is streamed, got {cfg.export}")
    return True


def too_large(cfg: Config) -> bool:
    """The weights exceed their share of what is free."""
    folder = find_source(cfg.model).folder
    size = sum(path.stat().st_size for path in weight_files(folder))
    return size > SHARE * psutil.virtual_memory().available


def open_original(cfg: Config, inputs: Inputs, work: Path | None) -> StreamedSource:
    """The original model, a block at a time."""
    return StreamedSource(
        find_source(cfg.model).folder,
        inputs.model_config,
        inputs.device,
        getattr(torch, cfg.dtype),
        work,
    )


def open_saved(cfg: Config, inputs: Inputs, folder: Path) -> StreamedSource:
    """A saved model, a block at a time."""
    return StreamedSource(folder, load_config(folder), inputs.device, getattr(torch, cfg.dtype))


def compress_streamed(
    cfg: Config, inputs: Inputs, job: Job, meter: Meter, sharing: Any
) -> tuple[Plan, dict[str, int]]:
    """Compress and save; the plan as carried out, and the parameters of the saved model."""
    work = job.folder / "blocks"
    work.mkdir(parents=True, exist_ok=True)
    assert inputs.calibration is not None
    say("  streamed: one block at a time is in memory")
    source = open_original(cfg, inputs, work)
    stack, dense, before = inputs.stack, inputs.dense, Plan(inputs.budget.ratio)
    (group,) = stack.groups()
    edits = plan_group(stack, 0, dense, before, inputs.budget, seen=None)
    probes = [probe for name, step in group for probe in step.survey(dense, edits[name])]
    seen = None
    if probes:
        with meter.stage("survey"):
            seen = survey(source, inputs.calibration, probes, inputs.how, sharing=sharing, bars=bar)
        edits = plan_group(stack, 0, dense, before, inputs.budget, seen=seen)
    with meter.stage("compress"):
        done = rewrite_blocks(
            source,
            group,
            edits,
            dense,
            ids=inputs.calibration,
            how=inputs.how,
            sharing=sharing,
            bars=bar,
            progress=bar("compress", "part"),
            seen=seen,
        )
    plan = before + done
    with meter.stage("save"):
        model = final_form(source, plan, inputs)
        names = [n for n in model.state_dict() if n not in model.all_tied_weights_keys]
        save(
            model,
            inputs.tokenizer,
            job.model_folder,
            weights=lambda folder: source.finish(folder / "model.safetensors", names),
        )
    job.discard("blocks")
    return plan, count_parameters(model)


def final_form(source: StreamedSource, plan: Plan, inputs: Inputs) -> PreTrainedModel:
    """The architecture of the saved model, without weights."""
    source.take_forms()
    model = as_compressed(source.model, settings_of(plan, inputs.model_config), inputs.model_config)
    return export(model, inputs.model_config, "factored")
