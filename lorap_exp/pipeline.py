"""The experiment. Read this file first.

`run` checks every input, chooses a method or a size where that was left open, plans, calibrates and
compresses block by block, saves, evaluates and reports. Each step leaves its result in the job's
folder, so the same command goes on where it was cut.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lorap_exp.calibration.sampling import digest
from lorap_exp.config import Config
from lorap_exp.evaluation.scores import Scores
from lorap_exp.models.origin import describe_source
from lorap_exp.reporting.choice import Choice
from lorap_exp.reporting.result import Result, read_result
from lorap_exp.reporting.tracking import track
from lorap_exp.steps.choose import choose
from lorap_exp.steps.compress import Compression, analyse, compress
from lorap_exp.steps.describe import describe_model
from lorap_exp.steps.prepare import Inputs, open_basis, outdated, prepare
from lorap_exp.steps.score import compare_answers, score
from lorap_exp.steps.stream import streams
from lorap_exp.workspace.device import claim_device
from lorap_exp.workspace.job import open_job
from lorap_exp.workspace.progress import Meter, say
from lorap_exp.workspace.versions import commit, versions


def run(cfg: Config, folder: Path, wait: bool = False, command: str = "") -> Result:
    """One experiment: check, choose, plan, calibrate and compress block by block, evaluate, report.

    A folder in which another process works is refused with `Busy`, or waited for. `command` is
    what was typed for it, for the record.
    """
    with open_job(folder, cfg, wait, command) as job:
        finished = read_result(folder / "result.json")
        if finished is not None and not outdated(cfg, job):
            say(f"{folder}: finished before, skipped")
            job.settle(cfg.keep_model)
            return finished
        with claim_device(cfg.device) as device:
            basis = open_basis(cfg, job, device)
            asked, (cfg, choice) = cfg, choose(cfg, basis, job)
            at = f"at ratio {cfg.ratio:g}" if cfg.ratio else "with nothing removed"
            say(f"{folder}: {cfg.method.name} {at} on {cfg.model.name}")
            inputs = prepare(cfg, basis, job)
            inputs = replace(inputs, streamed=streams(cfg, inputs))
            meter = Meter(device)
            with track(cfg, folder) as tracker:
                analyse(cfg, inputs, job, meter)
                source, compression = compress(cfg, inputs, job, meter)
                scores = score(cfg, inputs, job, meter, source)
                del source
                scores = replace(scores, stability=compare_answers(cfg, inputs, job, meter))
                result = summarise(asked, inputs, compression, scores, meter, choice)
                if cfg.keep_model:
                    describe_model(cfg, result, job)
                job.finish(result.to_dict(), cfg.keep_model)
                tracker.log_result(result)
    return result


def summarise(
    cfg: Config,
    inputs: Inputs,
    compression: Compression,
    scores: Scores,
    meter: Meter,
    choice: Choice | None,
) -> Result:
    """Everything that is reported of a job."""
    calibration: dict[str, Any] = {}
    if inputs.calibration is not None:
        shape = dict(zip(("samples", "length"), inputs.calibration.shape, strict=True))
        calibration = shape | {"sha256": digest(inputs.calibration)}
    return Result(
        config=cfg.dump(),
        versions=versions(),
        commit=commit(),
        device=str(inputs.device),
        source=describe_source(cfg.model),
        comparable=inputs.data.comparable,
        calibration=calibration,
        shapes=inputs.dense.blocks,
        plan=compression.plan,
        parameters=compression.parameters,
        bytes=compression.bytes,
        curves=compression.curves,
        scores=scores,
        seconds=compression.seconds | meter.seconds | scores.seconds(),
        peak_memory=compression.peak_memory | meter.peak_memory,
        choice=choice,
    )
