"""A trial of the chooser: a small job that is compressed and measured on the held-out windows."""

import math
import time
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.evaluation.perplexity import nll_of
from lorap_exp.models.sizes import stored_bytes
from lorap_exp.reporting.choice import Trial
from lorap_exp.schema.method import MethodConfig
from lorap_exp.steps.compress import compress, open_dense
from lorap_exp.steps.prepare import Basis, Inputs, prepare
from lorap_exp.steps.stream import streams
from lorap_exp.workspace.job import Job
from lorap_exp.workspace.progress import Meter, bar, say

DENSE = MethodConfig(name="dense", protect=(0, 0), stages={})


def run_trial(cfg: Config, basis: Basis, held: Tensor, folder: Path) -> Trial:
    """Compress a model in a folder of its own, where the same trial goes on, and measure it.

    A method that cannot run, or whose model gives no finite loss, is told by its sentence.
    """
    name, ratio, samples = cfg.method.name, cfg.ratio, cfg.calibration.samples
    assert ratio is not None, "a trial has one"
    say(f"  trial: {name} at ratio {ratio:g}, {samples} windows")
    start = time.perf_counter()
    job = Job(folder)
    try:
        inputs = _ready(cfg, basis, job)
        source, done = compress(cfg, inputs, job, Meter(basis.device))
        nll = nll_of(source, held, inputs.how.batch_size, inputs.how.place, bar("held out"))
    except LorapError as error:
        spent = time.perf_counter() - start
        return Trial(name, ratio, samples, seconds=spent, verdict=str(error))
    kept = done.parameters["compressed"]["decoder"] / done.parameters["dense"]["decoder"]
    size, spent = stored_bytes(job.model_folder), time.perf_counter() - start
    return Trial(name, ratio, samples, kept, size, math.exp(nll), spent)


def dense_perplexity(cfg: Config, basis: Basis, held: Tensor, folder: Path) -> float:
    """Perplexity of the original model on the held-out windows."""
    cfg = cfg.chosen(DENSE, 0.0)
    inputs = _ready(cfg, basis, Job(folder))
    source = open_dense(cfg, inputs, Meter(basis.device))
    return math.exp(nll_of(source, held, inputs.how.batch_size, inputs.how.place, bar("held out")))


def _ready(cfg: Config, basis: Basis, job: Job) -> Inputs:
    job.folder.mkdir(parents=True, exist_ok=True)
    inputs = prepare(cfg, basis, job)
    return replace(inputs, streamed=streams(cfg, inputs))
