"""From an original model to a saved, compressed and perhaps tuned one; finished groups are reused.

Neighbouring steps of a method that rewrite blocks form a group and share one walk; a step that
needs the whole model is a group of its own. What each group did lies in the job's folder.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorap_exp.analysis.spectra import measure_spectra
from lorap_exp.calibration.evidence import Sharing, Survey
from lorap_exp.calibration.survey import survey
from lorap_exp.config import Config
from lorap_exp.methods.contract import Step, Whole
from lorap_exp.methods.engine import rewrite_blocks
from lorap_exp.methods.planner import plan_group
from lorap_exp.methods.streamline.selection import LayerScores, Selection
from lorap_exp.models.checkpoint import check_reload, check_same, load, save
from lorap_exp.models.counting import count_parameters
from lorap_exp.models.families import meta_model
from lorap_exp.models.forms import as_compressed, export
from lorap_exp.models.headers import weight_bytes
from lorap_exp.models.layout import settings_of
from lorap_exp.models.loading import load_model
from lorap_exp.models.quantised import Packed, known_scales, pack
from lorap_exp.models.source import Source
from lorap_exp.models.stock import stock_base
from lorap_exp.models.streaming import StreamedSource
from lorap_exp.planning.edits import Edit, Plan, Quantised
from lorap_exp.reporting.selection import plot_selection
from lorap_exp.reporting.spectra import plot_spectra
from lorap_exp.steps.prepare import Inputs
from lorap_exp.steps.sharing import check_batch, sharing
from lorap_exp.steps.stream import open_original, open_saved
from lorap_exp.workspace.job import Job
from lorap_exp.workspace.progress import Meter, bar, no_bar, say
from lorap_exp.workspace.team import Team

Edits = dict[str, list[Edit]]
APART = 0.02
"""Share of the decoder by which what went may differ from the ratio without a word."""


@dataclass(frozen=True)
class Compression:
    """What is known of a saved model: parameters by part, bytes, seconds and peak bytes.

    `bytes` are those of the weights, dense ones counted and compressed ones on disk. `plan` is the
    plan as carried out; `curves` the losses of each training, by its name.
    """

    plan: Plan
    parameters: dict[str, dict[str, int]]
    seconds: dict[str, float]
    peak_memory: dict[str, int]
    bytes: dict[str, int]
    curves: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"plan": self.plan.to_dict()}

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> "Compression":
        return Compression(**raw | {"plan": Plan.from_dict(raw["plan"])})


def analyse(cfg: Config, inputs: Inputs, job: Job, meter: Meter) -> None:
    """The analysis that was asked for, on the original model, into the job's folder."""
    if cfg.analysis is None or job.read("spectra.json") is not None:
        return
    assert inputs.calibration is not None
    dense = open_dense(cfg, inputs, meter)
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


def load_dense(cfg: Config, inputs: Inputs, meter: Meter) -> PreTrainedModel:
    """The original model on the job's device."""
    dtype = getattr(torch, cfg.dtype)
    with meter.stage("load"):
        return load_model(cfg.model, inputs.model_config, inputs.device, dtype, cfg.seed)


def open_dense(cfg: Config, inputs: Inputs, meter: Meter, work: Path | None = None) -> Source:
    """The original model: in memory, or a block at a time; rewritten blocks go to `work`."""
    if inputs.streamed:
        return open_original(cfg, inputs, work)
    return Source(load_dense(cfg, inputs, meter))


def compress(cfg: Config, inputs: Inputs, job: Job, meter: Meter) -> tuple[Source, Compression]:
    """The compressed model: from the job's folder as far as it was saved, else made and saved."""
    groups = 0 if inputs.plan.is_dense else len(inputs.stack.groups())
    last = max(groups - 1, 0)
    work = Work(cfg, inputs, job, meter)
    start = work.resume(last)
    for number in range(start, groups):
        work.run(number)
        if number == last or work.is_saved_before(inputs.stack.groups()[number + 1][0][1]):
            work.save(number, final=number == last)
    if not groups and start == 0:
        work.save(0, final=True)
    return work.source(), work.done


class Work:
    """A model on its way through the groups of a method."""

    def __init__(self, cfg: Config, inputs: Inputs, job: Job, meter: Meter) -> None:
        self._cfg, self._inputs, self._job, self._meter = cfg, inputs, job, meter
        self._source: Source | None = None
        self._saved: Path | None = None
        counts = {"dense": count_parameters(meta_model(inputs.model_config))}
        size = counts["dense"]["total"] * getattr(torch, cfg.dtype).itemsize
        self.done = Compression(Plan(inputs.budget.ratio), counts, {}, {}, {"dense": size})

    def resume(self, last: int) -> int:
        """The number of the first group that is still to do."""
        for number in range(last, -1, -1):
            done = self._job.restore(f"group_{number}.json", Compression.from_dict)
            folder = self._folder(number, final=number == last)
            if done is not None and (folder / "config.json").is_file():
                say("  compressed before, reloaded")
                self.done, self._saved = done, folder
                return number + 1
        return 0

    def source(self) -> Source:
        """The model as it is now: as it was left, or opened."""
        if self._source is None:
            self._source = self._open()
        return self._source

    def is_saved_before(self, step: Step) -> bool:
        """A step needs the model so far in files of its own."""
        return step.trains or (step.reach == "block" and self.source().streamed)

    @property
    def _blocks(self) -> Path:
        """Where a streamed model's rewritten blocks wait; a saved model has a folder of its own."""
        saved = "" if self._saved is None else f"_{self._saved.name}"
        return self._job.folder / f"blocks{saved}"

    def _open(self) -> Source:
        cfg, inputs, blocks = self._cfg, self._inputs, self._blocks
        if self._saved is None:
            if inputs.streamed:
                say("  streamed: one block at a time is in memory")
            return open_dense(cfg, inputs, self._meter, blocks)
        if inputs.streamed:
            final = self._saved == self._job.model_folder
            return open_saved(cfg, inputs, self._saved, None if final else blocks)
        return Source(load(self._saved, inputs.device, getattr(torch, cfg.dtype)))

    def _take(self) -> Source:
        """The model, forgotten here: who takes it is the only one to hold it."""
        source = self.source()
        self._source = None
        return source

    def run(self, number: int) -> None:
        """Measure, plan and carry out one group."""
        group = self._inputs.stack.groups()[number]
        edits, seen = self._plan(number)
        first = group[0][1]
        if first.reach == "model":
            label = "replace" if first.removes_layers else "recovery"
            with self._meter.stage(label):
                if first.trains:
                    self._job.write(f"planned_{number}.json", _plain(edits))
                    Team().tell(f"group {number}")
                part = whole_part(self._cfg, self._inputs, self._job, number, self._take)
                carried = first.apply(part, edits[group[0][0]], None, {})
                self._source = part.source
            for name, curve in part.curves.items():
                say(f"  {name}: {curve.summary()}")
            curves = {name: asdict(curve) for name, curve in part.curves.items()}
            self._advance(carried, curves)
            return
        with self._meter.stage("compress"):
            assert self._inputs.calibration is not None
            carried = rewrite_blocks(
                self.source(),
                group,
                edits,
                self.done.plan.shape(self._inputs.dense),
                ids=self._inputs.calibration,
                how=self._inputs.how,
                sharing=self._sharing(),
                bars=bar,
                progress=bar("compress", "part"),
                seen=seen,
            )
            self._advance(carried, {})

    def _plan(self, number: int) -> tuple[Edits, Survey | None]:
        """The edits of each step, in view of what it asks to be measured, and that."""
        inputs, group = self._inputs, self._inputs.stack.groups()[number]
        before = self.done.plan
        edits = plan_group(inputs.stack, number, inputs.dense, before, inputs.budget, seen=None)
        shape = before.shape(inputs.dense)
        probes = [probe for name, step in group for probe in step.survey(shape, edits[name])]
        if not probes:
            return edits, None
        assert inputs.calibration is not None
        with self._meter.stage("select" if group[0][1].removes_layers else "survey"):
            seen = survey(
                self.source(),
                inputs.calibration,
                probes,
                inputs.how,
                sharing=self._sharing(),
                bars=bar,
            )
        for probe in probes:
            if isinstance(probe, LayerScores):
                self._show(Selection.restore(**seen.of(probe)))
        edits = plan_group(inputs.stack, number, inputs.dense, before, inputs.budget, seen=seen)
        return edits, seen

    def _show(self, selection: Selection) -> None:
        self._job.write("selection.json", asdict(selection))
        plot_selection(selection, self._cfg.model.name, self._job.folder / "selection.png")
        say(f"  layers {', '.join(map(str, selection.removed))} go ({selection.criterion})")

    def _sharing(self) -> Sharing | None:
        """The store, while the model is still the original one."""
        return None if self.done.plan.edits else sharing(self._cfg, self._inputs)

    def _advance(self, carried: Any, curves: dict[str, Any]) -> None:
        found = self.done.curves | curves
        self.done = replace(self.done, plan=self.done.plan + carried, curves=found)

    def _folder(self, number: int, *, final: bool) -> Path:
        return self._job.model_folder if final else self._job.folder / f"group_{number}"

    def save(self, number: int, *, final: bool) -> None:
        """Save the model, compare the reload with it, and note what was done.

        A group that follows begins with the saved model, as it does in a job that goes on.
        """
        cfg, inputs, folder = self._cfg, self._inputs, self._folder(number, final=final)
        blocks = self._blocks.name
        with self._meter.stage("save"):
            source = self._take()
            streamed = source if isinstance(source, StreamedSource) else None
            if streamed is not None:
                streamed.take_forms()
            scales = known_scales(source.model)
            settings = settings_of(self.done.plan, inputs.model_config)
            model = as_compressed(source.model, settings, inputs.model_config)
            if final:
                model = export(model, stock_base(inputs.model_config), cfg.export)
            if streamed is None:
                packed = self._pack(model, scales) if final else None
                save(model, inputs.tokenizer, folder, packed=packed)
                check_reload(model, folder, check_batch(inputs))
            else:
                fill = partial(streamed.fill, final=model, form=cfg.export)
                save(model, inputs.tokenizer, folder, fill)
                ids = check_batch(inputs).to(inputs.device)
                saved = open_saved(cfg, inputs, folder)
                check_same(source.model(ids).logits, saved.model(ids).logits, folder)
            self._job.record(folder)
        kept = final and streamed is None
        self._source, self._saved = Source(model) if kept else None, folder
        self._note(number, count_parameters(model), weight_bytes(folder))
        self._job.discard("training", blocks)
        if final:
            self._job.discard("blocks", *(f"group_{before}" for before in range(number)))
            self._say_size()

    def _pack(self, model: PreTrainedModel, scales: Mapping[str, Tensor]) -> Packed | None:
        """The model's integers, where the plan asks for them; its weights become theirs."""
        asked = [edit for edit in self.done.plan.edits if isinstance(edit, Quantised)]
        if not asked:
            return None
        return pack(model, asked[0].to, asked[0].group_size, scales)

    def _say_size(self) -> None:
        """A ratio counts over what the stages may change, which may be less than the decoder."""
        dense, left = (self.done.parameters[name]["decoder"] for name in ("dense", "compressed"))
        gone, asked = 1 - left / dense, self._inputs.budget.ratio
        if self._inputs.budget.whole is None and abs(gone - asked) > APART:
            say(
                f"  {gone:.3f} of the decoder's weights went, at ratio {asked}, which counts over "
                f"what the stages may change"
            )

    def _note(self, number: int, parameters: dict[str, int], size: int) -> None:
        """Write down what was done up to a group."""
        self.done = replace(
            self.done,
            parameters=self.done.parameters | {"compressed": parameters},
            bytes=self.done.bytes | {"compressed": size},
            seconds=self.done.seconds | self._meter.seconds,
            peak_memory=self.done.peak_memory | self._meter.peak_memory,
        )
        self._job.write("plan.json", self.done.plan.to_dict())
        self._job.write(f"group_{number}.json", self.done.to_dict())


def whole_part(
    cfg: Config,
    inputs: Inputs,
    job: Job,
    number: int,
    reload: Callable[[], Source],
) -> Whole:
    """What a step of reach "model" is given."""
    name, _ = inputs.stack.groups()[number][0]
    return Whole(
        reload,
        calibration=inputs.calibration,
        how=inputs.how,
        read=inputs.read.get(name),
        original=partial(open_dense, cfg, inputs, Meter(inputs.device, quiet=True)),
        folder=job.folder / "training",
        bars=bar if Team().leads else no_bar,
    )


def _plain(edits: Edits) -> dict[str, Any]:
    return {name: Plan(0.0, tuple(own)).to_dict() for name, own in edits.items()}
