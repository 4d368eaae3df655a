"""The experiment. Read this file first.

`run` checks every input, plans, calibrates and compresses block by block, saves, evaluates and
reports. Each step leaves its result in the job's folder, so the same command goes on where it
was cut.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lorap_exp.analysis.spectra import measure_spectra, plot_spectra
from lorap_exp.calibration.sampling import digest, read_documents, sample_windows
from lorap_exp.config import Config
from lorap_exp.data.source import DataSource, open_source
from lorap_exp.evaluation.suite import Suite, evaluate, prepare_suite
from lorap_exp.job import Job, open_job
from lorap_exp.methods.stage import Stage, build_stages, compress, plan_stack
from lorap_exp.models.checkpoint import (
    as_compressed,
    check_reload,
    count_parameters,
    export,
    load,
    save,
)
from lorap_exp.models.families import family_of, shapes_of
from lorap_exp.models.loading import (
    describe_source,
    load_config,
    load_model,
    load_tokenizer,
    meta_model,
    resolve_device,
)
from lorap_exp.planning.plan import Plan
from lorap_exp.reporting.progress import Meter, bar, say
from lorap_exp.reporting.result import Result, Scores, commit, versions
from lorap_exp.reporting.tracking import track


def run(cfg: Config, folder: Path) -> Result:
    """One experiment: check, plan, calibrate and compress block by block, evaluate, report."""
    with open_job(folder, cfg) as job:
        if (finished := job.result()) is not None:
            say(f"{folder}: finished before, skipped")
            return finished
        say(f"{folder}: {cfg.method.name} at ratio {cfg.ratio} on {cfg.model.name}")
        inputs = prepare(cfg, job)
        meter = Meter(inputs.device)
        with track(cfg, folder) as tracker:
            analyse(cfg, inputs, job, meter)
            model, compression = compress_or_reuse(cfg, inputs, job, meter)
            scores = Scores(*evaluate(inputs.suite, model, inputs.tokenizer, job, meter))
            result = summarise(cfg, inputs, compression, scores, meter)
            tracker.log_result(result)
        job.finish(result, cfg.keep_model)
    return result


@dataclass(frozen=True)
class Inputs:
    """Everything a job needs apart from weights; `calibration` is (samples, length) or None."""

    device: torch.device
    model_config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    data: DataSource
    stages: list[Stage]
    plan: Plan
    calibration: Tensor | None
    suite: Suite


@dataclass(frozen=True)
class Compression:
    """What is known of a saved compressed model: parameters by part, seconds and peak bytes.

    `plan` is the plan as carried out.
    """

    plan: Plan
    parameters: dict[str, dict[str, int]]
    seconds: dict[str, float]
    peak_memory: dict[str, int]


def prepare(cfg: Config, job: Job) -> Inputs:
    """Check model, method, data and budget; plan; tokenise. No weight is read."""
    device = resolve_device(cfg.device)
    stages = build_stages(cfg.method)
    data = open_source(cfg.data)
    model_config = load_config(cfg.model)
    empty = meta_model(model_config)
    plan = plan_stack(
        stages,
        shapes_of(empty),
        cfg.ratio,
        protect=cfg.method.protect,
        whole=count_parameters(empty)["total"] if cfg.ratio_of == "model" else None,
    )
    tokenizer = load_tokenizer(cfg.model)
    bos = tokenizer.bos_token_id if family_of(model_config.model_type).bos_every_chunk else None
    suite = prepare_suite(cfg.evaluation, data, tokenizer, job.folder / "tasks", bos)
    needed = not plan.is_dense or cfg.analysis is not None
    ids = calibration_ids(cfg, data, tokenizer, bos) if needed else None
    return Inputs(device, model_config, tokenizer, data, stages, plan, ids, suite)


def calibration_ids(
    cfg: Config, data: DataSource, tokenizer: PreTrainedTokenizerBase, bos: int | None
) -> Tensor:
    """Calibration tokens (samples, length)."""
    asked = cfg.calibration
    return sample_windows(
        read_documents(asked, data),
        tokenizer,
        samples=asked.samples,
        length=asked.length,
        seed=asked.seed + cfg.seed,
        bos=bos,
    )


def analyse(cfg: Config, inputs: Inputs, job: Job, meter: Meter) -> None:
    """The analysis that was asked for, on the dense model, into the job's folder."""
    if cfg.analysis is None or job.read("spectra.json") is not None:
        return
    assert inputs.calibration is not None
    dtype = getattr(torch, cfg.dtype)
    dense = load_model(cfg.model, inputs.model_config, inputs.device, dtype, cfg.seed)
    with meter.stage("analysis"):
        spectra = measure_spectra(
            dense,
            inputs.calibration,
            cfg.analysis.metrics,
            cfg.analysis.shares,
            batch_size=cfg.calibration.batch_size,
            progress=bar("analysis", "block"),
        )
    job.write("spectra.json", [asdict(spectrum) for spectrum in spectra])
    plot_spectra(spectra, cfg.model.name, job.folder / "spectra.png")


def compress_or_reuse(
    cfg: Config, inputs: Inputs, job: Job, meter: Meter
) -> tuple[PreTrainedModel, Compression]:
    """The compressed model: from the job's folder when it was saved, else made and saved."""
    dtype = getattr(torch, cfg.dtype)
    if (raw := job.read("compression.json")) is not None:
        say("  compressed before, reloaded")
        done = Compression(**raw | {"plan": Plan.from_dict(raw["plan"])})
        return load(job.model_folder, inputs.device, dtype), done
    with meter.stage("load"):
        dense = load_model(cfg.model, inputs.model_config, inputs.device, dtype, cfg.seed)
    parameters = {"dense": count_parameters(dense)}
    plan = inputs.plan
    with meter.stage("compress"):
        if inputs.calibration is not None and not plan.is_dense:
            plan = compress(
                dense,
                inputs.stages,
                inputs.plan,
                ids=inputs.calibration,
                batch_size=cfg.calibration.batch_size,
                propagation=cfg.calibration.propagation,
                progress=bar("compress", "block"),
            )
        model = as_compressed(dense, plan)
    parameters["compressed"] = count_parameters(model)
    model = export(model, inputs.model_config, plan, cfg.export)
    with meter.stage("save"):
        save(model, inputs.tokenizer, job.model_folder)
        check_reload(model, job.model_folder, check_batch(inputs))
    compression = Compression(plan, parameters, dict(meter.seconds), dict(meter.peak_memory))
    job.write("plan.json", asdict(plan))
    job.write("compression.json", asdict(compression))
    return model, compression


def check_batch(inputs: Inputs) -> Tensor:
    """A few real sequences on which the reloaded model is compared."""
    if inputs.calibration is not None:
        return inputs.calibration[:2]
    if inputs.suite.texts:
        return inputs.suite.texts[0][1][:2]
    return torch.tensor([inputs.tokenizer("The quick brown fox.")["input_ids"]])


def summarise(
    cfg: Config, inputs: Inputs, compression: Compression, scores: Scores, meter: Meter
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
        plan=compression.plan,
        parameters=compression.parameters,
        scores=scores,
        seconds=compression.seconds | meter.seconds,
        peak_memory=compression.peak_memory | meter.peak_memory,
    )
