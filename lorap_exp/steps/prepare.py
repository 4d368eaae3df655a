"""Everything a job needs apart from weights, checked before any is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from lorap_exp.calibration.sampling import (
    digest,
    further_windows,
    read_documents,
    sample_windows,
)
from lorap_exp.calibration.walk import Walk
from lorap_exp.config import Config, identity
from lorap_exp.data.source import DataSource, open_source
from lorap_exp.errors import LorapError
from lorap_exp.evaluation.profiles import PROFILES
from lorap_exp.evaluation.suite import Suite, prepare_suite
from lorap_exp.methods.contract import Texts
from lorap_exp.methods.planner import plan_stack
from lorap_exp.methods.stack import Stack, build_stack
from lorap_exp.models.counting import count_parameters
from lorap_exp.models.digests import digest_tokenizer
from lorap_exp.models.experts import check_experts
from lorap_exp.models.families import family_of, meta_model
from lorap_exp.models.layout import dense_shape
from lorap_exp.models.loading import check_dense, digest_model, load_config, load_tokenizer
from lorap_exp.models.origin import local_folder
from lorap_exp.models.tokenizers import check_ids, check_length, check_tokenizer
from lorap_exp.planning.edits import Plan, Quantised
from lorap_exp.planning.knapsack import Knapsack
from lorap_exp.planning.rounding import Rounding
from lorap_exp.planning.rules import LayerShares, Proportions, Rule, Uniform
from lorap_exp.planning.shapes import Shape
from lorap_exp.planning.stack import Budget
from lorap_exp.schema.method import AllocationConfig
from lorap_exp.workspace.digests import digest_file, digest_json
from lorap_exp.workspace.extras import require
from lorap_exp.workspace.job import Job
from lorap_exp.workspace.store import Store


@dataclass(frozen=True)
class Basis:
    """What a job needs whichever method it runs.

    Attributes:
        dense: shape of the original model.
    """

    device: torch.device
    model_config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    data: DataSource
    dense: Shape
    suite: Suite
    store: Store
    model_digest: str

    @property
    def bos(self) -> int | None:
        """The token that every window must begin with, if there is one."""
        return bos_of(self.model_config, self.tokenizer)


def bos_of(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that every window must begin with, if there is one."""
    return tokenizer.bos_token_id if family_of(config).bos_every_chunk else None


@dataclass(frozen=True)
class Inputs(Basis):
    """Everything a job needs apart from weights.

    Attributes:
        plan: as many parameters as asked; where they are may still change with what is measured.
        calibration: tokens (samples, length), or None.
        read: what each step trains on, by its name.
        streamed: blocks come from disk; decided once for the job (`steps.stream`).
    """

    stack: Stack
    budget: Budget
    plan: Plan
    calibration: Tensor | None
    how: Walk
    read: dict[str, Any]
    streamed: bool = False

    @property
    def trains(self) -> bool:
        """The last step trains the compressed model; a dense model has nothing to recover."""
        return self.stack.trains and not self.plan.is_dense


def open_basis(cfg: Config, job: Job, device: torch.device) -> Basis:
    """Check model, data and evaluation, and that every method can be built. No weight is read."""
    check_extras(cfg)
    stacks = build_stacks(cfg)
    store = Store(Path(cfg.store.folder), int(cfg.store.limit_gib * 2**30)).open()
    data = open_source(cfg.data)
    model_config = load_config(cfg.model)
    if cfg.analysis is not None or any(stack.steps for stack in stacks):
        check_dense(cfg.model, model_config)
    dense = dense_shape(model_config)
    if not cfg.chooses:
        plan_method(cfg, stacks[0], model_config, dense)
    tokenizer = load_tokenizer(cfg.model)
    for stack in stacks:
        check_lengths(cfg, stack, model_config)
    asked = (cfg.evaluation.zero_shot, cfg.evaluation.generation)
    ends = any(stack.trains for stack in stacks) or any(suite is not None for suite in asked)
    check_tokenizer(tokenizer, model_config, ends=ends)
    bos = bos_of(model_config, tokenizer)
    suite = prepare_suite(cfg.evaluation, data, tokenizer, job.folder / "tasks", bos, store)
    check_ids(
        {f"evaluation.perplexity.texts {text.name}": chunks for text, chunks in suite.texts},
        model_config,
    )
    model = digest_model(cfg.model, model_config, cfg.seed)
    return Basis(device, model_config, tokenizer, data, dense, suite, store, model)


def build_stacks(cfg: Config) -> list[Stack]:
    """Every method that may run.

    Raises:
        LorapError: a wrong field, or a method that trains where one is chosen by trials.
    """
    stacks = []
    for name, method in cfg.candidates.items():
        stack = build_stack(method)
        if cfg.chooses and stack.trains:
            setting = "choose.candidates" if cfg.choose.candidates else f"{cfg.target.name}: method"
            raise LorapError(f"{setting} must not train the model, got '{name}', which does")
        stacks.append(stack)
    return stacks


def plan_method(
    cfg: Config, stack: Stack, model_config: PreTrainedConfig, dense: Shape
) -> tuple[Budget, Plan]:
    """What is asked of a method, and its plan before anything is measured.

    Raises:
        LorapError: a step cannot work on the architecture, or the ratio cannot be had.
    """
    for _, step in stack.steps:
        step.check(model_config)
    budget = budget_of(cfg, model_config)
    plan = plan_stack(stack, dense, budget)
    check_experts(plan.shape(dense), model_config)
    check_export(cfg, plan)
    return budget, plan


def prepare(cfg: Config, basis: Basis, job: Job) -> Inputs:
    """Check the method and its budget; plan; read what it is calibrated on. No weight is read."""
    stack = build_stack(cfg.method)
    budget, plan = plan_method(cfg, stack, basis.model_config, basis.dense)
    needed = not plan.is_dense or cfg.analysis is not None
    calibration = calibration_ids(cfg, basis) if needed else None
    stack = stack.at(budget.ratio)
    texts = Texts(basis.tokenizer, basis.data, basis.bos)
    read = {} if plan.is_dense else {name: step.read(texts) for name, step in stack.steps}
    trained = {f"method.stages.{name}": trained_ids(found) for name, found in read.items()}
    texts_read = {"calibration": calibration, **trained}
    check_ids(texts_read, basis.model_config)
    files = local_files(cfg)
    job.bind(
        {"model": basis.model_digest, "tokenizer": digest_tokenizer(basis.tokenizer)}
        | {name: None if ids is None else digest(ids) for name, ids in texts_read.items()}
        | {"settings": digest_json(identity(cfg.dump()))}
    )
    job.write("files.json", files)
    how = Walk(
        cfg.calibration.batch_size,
        cfg.calibration.propagation,
        cfg.calibration.order,
        cfg.calibration.hidden_states,
    )
    return Inputs(
        **vars(basis),
        stack=stack,
        budget=budget,
        plan=plan,
        calibration=calibration,
        how=how,
        read=read,
    )


def check_extras(cfg: Config) -> None:
    """The packages that the evaluation and the tracking need are installed."""
    asked = {"zero_shot": cfg.evaluation.zero_shot, "generation": cfg.evaluation.generation}
    for name, suite in asked.items():
        if suite is not None:
            require("lm-eval", f"evaluation.{name}", "evaluation=perplexity")
    if cfg.logging.wandb != "disabled":
        require("wandb", f"logging.wandb={cfg.logging.wandb}", "logging=disabled")


def local_files(cfg: Config) -> dict[str, str]:
    """The digest of every local file that the job reads: model, texts, tasks, instructions."""
    found: list[Path] = []
    if cfg.model.random is None and (folder := local_folder(cfg.model)) is not None:
        found += [path for path in folder.iterdir() if path.is_file()]
    if cfg.data.source == "local" and cfg.data.folder is not None:
        found += [path for path in Path(cfg.data.folder).expanduser().rglob("*") if path.is_file()]
    stages = [settings for settings in cfg.method.stages.values() if settings is not None]
    named = [*cfg.calibration.files, *(str(s["file"]) for s in stages if s.get("file"))]
    found += [path for name in named if (path := Path(name).expanduser()).is_file()]
    return {str(path): digest_file(path) for path in sorted(found)}


def outdated(cfg: Config, job: Job) -> bool:
    """Whether a local file is no longer the one that the finished job read; one that is gone
    changes nothing."""
    known, now = job.read("files.json"), local_files(cfg)
    return isinstance(known, dict) and any(now.get(p, of) != of for p, of in known.items())


def trained_ids(read: Any) -> Tensor | None:
    """Every token that a step trains on: of windows (samples, T), or of examples one by one."""
    if read is None or isinstance(read, Tensor):
        return read
    return torch.cat([ids for ids, _ in read])


def check_export(cfg: Config, plan: Plan) -> None:
    """Raise where factors would be multiplied out that are stored as integers."""
    if cfg.export != "factored" and any(isinstance(edit, Quantised) for edit in plan.edits):
        raise LorapError(
            f"export must be factored where a stage stores integers, got "
            f"{cfg.export}; `export FOLDER --to dense`, and then `--to int4`, rounds the product "
            f"of factors"
        )


def check_lengths(cfg: Config, stack: Stack, model_config: PreTrainedConfig) -> None:
    """Every length that is asked for, against the model's positions."""
    asked = {"calibration.length": cfg.calibration.length}
    if cfg.evaluation.perplexity is not None:
        profile = PROFILES[cfg.evaluation.perplexity.profile]
        asked[f"evaluation.perplexity.profile {profile.name}: its chunks"] = profile.length
    for name, step in stack.steps:
        asked |= {f"method.stages.{name}.{setting}": n for setting, n in step.lengths().items()}
        for setting, count in step.sequences().items():
            if count > cfg.calibration.samples:
                raise LorapError(
                    f"method.stages.{name}.{setting} must be at most calibration.samples "
                    f"({cfg.calibration.samples}), got {count}"
                )
    if (speed := cfg.evaluation.efficiency) is not None:
        asked["evaluation.efficiency.prompt + tokens"] = speed.prompt + speed.tokens
    for setting, length in asked.items():
        check_length(setting, length, model_config)


def budget_of(cfg: Config, model_config: PreTrainedConfig) -> Budget:
    """What is asked of the method."""
    assert cfg.ratio is not None, "the chooser has found it"
    whole = cfg.ratio_of == "model"
    return Budget(
        cfg.ratio,
        count_parameters(meta_model(model_config))["total"] if whole else None,
        cfg.method.protect,
        rule_of(cfg.method.allocation) if cfg.method.allocation is not None else None,
    )


def rule_of(allocation: AllocationConfig) -> Rule:
    """The rule that a configuration names."""
    rounding = Rounding(allocation.round_to, uniform=False)
    match allocation.rule:
        case "knapsack":
            return Knapsack(rounding, allocation.floor)
        case "layer_shares":
            return LayerShares(allocation.temperature, allocation.cap, rounding)
        case "proportions":
            return Proportions(tuple(allocation.factors.items()), rounding)
        case "uniform":
            return Uniform(rounding)


def calibration_ids(cfg: Config, basis: Basis) -> Tensor:
    """Calibration tokens (samples, length)."""
    documents, tokenizer = read_documents(cfg.calibration, basis.data), basis.tokenizer
    return sample_windows(documents, tokenizer, **_drawing(cfg, basis))


def held_out_ids(cfg: Config, basis: Basis) -> Tensor:
    """Windows (held_out, length) of the calibration text that no calibration window overlaps."""
    documents, tokenizer = read_documents(cfg.calibration, basis.data), basis.tokenizer
    return further_windows(
        documents,
        tokenizer,
        held=cfg.choose.held_out,
        setting="choose.held_out",
        **_drawing(cfg, basis),
    )


def _drawing(cfg: Config, basis: Basis) -> dict[str, Any]:
    """How the calibration windows are drawn."""
    asked = cfg.calibration
    seed = asked.seed + cfg.seed
    return {"samples": asked.samples, "length": asked.length, "seed": seed, "bos": basis.bos}
