"""From a dense model to a saved, compressed and perhaps recovered one; done steps are reused."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorap_exp.analysis.spectra import measure_spectra, plot_spectra
from lorap_exp.calibration.sampling import digest
from lorap_exp.calibration.shared import Sharing
from lorap_exp.config import Config
from lorap_exp.methods.selection import Selection, plot_selection
from lorap_exp.methods.stage import compress
from lorap_exp.models.checkpoint import (
    as_compressed,
    check_reload,
    count_parameters,
    export,
    load,
    save,
)
from lorap_exp.models.families import meta_model
from lorap_exp.models.layout import module_settings, settings_of
from lorap_exp.models.loading import load_model
from lorap_exp.planning.plan import Plan
from lorap_exp.steps.prepare import Inputs, plan_job
from lorap_exp.training.loop import Curve
from lorap_exp.workspace.job import Job
from lorap_exp.workspace.progress import Meter, bar, no_bar, say
from lorap_exp.workspace.team import Team
from lorap_exp.workspace.versions import source_digest, versions


@dataclass(frozen=True)
class Compression:
    """What is known of a saved model: parameters by part, seconds and peak bytes.

    `plan` is the plan as carried out; `curves` the losses of each training, by its name.
    """

    plan: Plan
    parameters: dict[str, dict[str, int]]
    seconds: dict[str, float]
    peak_memory: dict[str, int]
    curves: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> "Compression":
        return Compression(**raw | {"plan": Plan.from_dict(raw["plan"])})


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
    """The compressed model: from the job's folder when it was saved, else made and saved.

    A model that goes on to recovery is kept apart until that is done.
    """
    final = not inputs.recovers
    folder = job.model_folder if final else job.folder / "compressed"
    dtype = getattr(torch, cfg.dtype)
    if (raw := job.read("compression.json")) is not None:
        say("  compressed before, reloaded")
        recovered = not final and job.read("recovery.json") is not None
        source = job.model_folder if recovered else folder
        return load(source, inputs.device, dtype), Compression.from_dict(raw)
    dense = Dense(cfg, inputs, meter)
    parameters = {"dense": count_parameters(meta_model(inputs.model_config))}
    plan = inputs.plan
    curves: dict[str, Any] = {}
    if plan.removal.layers:
        model, plan, curves = remove_layers(cfg, inputs, job, meter, dense)
    else:
        model = dense.take()
    with meter.stage("compress"):
        if inputs.calibration is not None and plan.reshapes:
            plan = compress(
                model,
                inputs.stack.stages,
                plan,
                ids=inputs.calibration,
                batch_size=cfg.calibration.batch_size,
                propagation=cfg.calibration.propagation,
                sharing=None if plan.removal.layers else sharing(cfg, inputs),
                progress=bar("compress", "block"),
            )
        settings = settings_of(plan, inputs.model_config)
        model = as_compressed(model, settings, inputs.model_config)
    with meter.stage("save"):
        if final:
            model = export(model, inputs.model_config, cfg.export)
        parameters["compressed"] = count_parameters(model)
        save_checked(inputs, model, folder)
    seconds, peak = dict(meter.seconds), dict(meter.peak_memory)
    compression = Compression(plan, parameters, seconds, peak, curves)
    job.write("plan.json", asdict(plan))
    job.write("compression.json", asdict(compression))
    job.discard("training")
    return model, compression


def dense_key(cfg: Config, inputs: Inputs) -> dict[str, Any]:
    """What everything computed from the dense model depends on."""
    return {
        "model": inputs.model_digest,
        "dtype": cfg.dtype,
        "device": inputs.device.type,
        "versions": versions() | {"source": source_digest()},
    }


def sharing(cfg: Config, inputs: Inputs) -> Sharing:
    """What the statistics of the dense model depend on, and where they are kept."""
    assert inputs.calibration is not None
    tokens = {"shape": list(inputs.calibration.shape), "sha256": digest(inputs.calibration)}
    batches = {"batch_size": cfg.calibration.batch_size}
    return Sharing(inputs.store, dense_key(cfg, inputs), {"calibration": tokens | batches})


class Dense:
    """The dense model, loaded when it is asked for; who takes it is the only one to hold it."""

    def __init__(self, cfg: Config, inputs: Inputs, meter: Meter) -> None:
        self._cfg, self._inputs, self._meter = cfg, inputs, meter
        self._model: PreTrainedModel | None = None

    def look(self) -> PreTrainedModel:
        """The model, kept for whoever takes it."""
        if self._model is None:
            cfg, inputs = self._cfg, self._inputs
            dtype = getattr(torch, cfg.dtype)
            with self._meter.stage("load"):
                self._model = load_model(
                    cfg.model, inputs.model_config, inputs.device, dtype, cfg.seed
                )
        return self._model

    def take(self) -> PreTrainedModel:
        """The model, forgotten here."""
        model = self.look()
        self._model = None
        return model


def remove_layers(
    cfg: Config, inputs: Inputs, job: Job, meter: Meter, dense: Dense
) -> tuple[PreTrainedModel, Plan, dict[str, Any]]:
    """The shortened model, the plan with its layers, and the curves of what was trained."""
    removal = inputs.stack.removal
    assert removal is not None and inputs.calibration is not None
    ids, batch_size = inputs.calibration, cfg.calibration.batch_size

    length, shared = len(inputs.plan.removal.layers), sharing(cfg, inputs)
    asked = {"criterion": removal.criterion, "length": length, "protect": removal.protected}
    key = {**shared.weights, **shared.inputs, **asked, "start": removal.start}

    def choose() -> dict[str, Any]:
        with meter.stage("select"):
            shown = bar("select", "batch")
            return asdict(removal.select(dense.look(), ids, length, batch_size, shown))

    def find() -> Selection:
        return Selection.restore(**inputs.store.json("selections", key, choose))

    selection = job.reuse("selection", Selection.restore, find)
    plot_selection(selection, cfg.model.name, job.folder / "selection.png")
    say(f"  layers {', '.join(map(str, selection.removed))} go ({selection.criterion})")
    with meter.stage("replace"):
        if removal.trains:
            Team().tell("replace")
        model, plan, curves = replace_layers(cfg, inputs, job, dense, selection)
    for name, curve in curves.items():
        say(f"  {name}: {curve.summary()}")
    return model, plan, {name: asdict(curve) for name, curve in curves.items()}


def replace_layers(
    cfg: Config, inputs: Inputs, job: Job, dense: Dense, selection: Selection
) -> tuple[PreTrainedModel, Plan, dict[str, Curve]]:
    """Remove the chosen layers and train what stands in their place."""
    removal = inputs.stack.removal
    assert removal is not None and inputs.calibration is not None
    plan = plan_job(cfg, inputs.stack, inputs.model_config, removal.place(selection))
    model, curves = removal.remove(
        dense.take,
        plan.removal,
        calibration=inputs.calibration,
        windows=inputs.windows,
        batch_size=cfg.calibration.batch_size,
        folder=job.folder / "training",
        bars=bar if Team().leads else no_bar,
    )
    return model, plan, curves


def recover_or_reuse(
    cfg: Config,
    inputs: Inputs,
    job: Job,
    meter: Meter,
    compressed: tuple[PreTrainedModel, Compression],
) -> tuple[PreTrainedModel, Compression]:
    """The recovered model and what is known of it; without a recovery, what was given."""
    model, before = compressed
    if not inputs.recovers:
        return compressed
    assert inputs.stack.recovery is not None
    if (raw := job.read("recovery.json")) is not None:
        say("  recovered before, reloaded")
        return model, Compression.from_dict(raw)
    with meter.stage("recovery"):
        Team().tell("recover")
        model, plan, curve = inputs.stack.recovery.recover(
            model, before.plan, inputs.examples, job.folder / "recovery", bar("recovery", "step")
        )
        model.config.compressed_modules = module_settings(plan, inputs.model_config)
    with meter.stage("save"):
        model = export(model, inputs.model_config, cfg.export)
        parameters = before.parameters | {"compressed": count_parameters(model)}
        save_checked(inputs, model, job.model_folder)
    seconds, peak = before.seconds | meter.seconds, before.peak_memory | meter.peak_memory
    curves = before.curves | {"recovery": asdict(curve)}
    after = Compression(plan, parameters, seconds, peak, curves)
    job.write("plan.json", asdict(plan))
    job.write("recovery.json", asdict(after))
    job.discard("compressed", "recovery")
    say(f"  recovery: {curve.summary()}")
    return model, after


def save_checked(inputs: Inputs, model: PreTrainedModel, folder: Path) -> None:
    """Save a model, and compare the reload with it."""
    save(model, inputs.tokenizer, folder)
    check_reload(model, folder, check_batch(inputs))


def check_batch(inputs: Inputs) -> Tensor:
    """A few real sequences on which the reloaded model is compared."""
    if inputs.calibration is not None:
        return inputs.calibration[:2]
    if inputs.suite.texts:
        return inputs.suite.texts[0][1][:2]
    return torch.tensor([inputs.tokenizer("The quick brown fox.")["input_ids"]])
