"""Everything a job needs apart from weights, checked before any is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from lorap_exp.calibration.sampling import read_documents, sample_windows
from lorap_exp.calibration.walk import Walk
from lorap_exp.config import AllocationConfig, Config
from lorap_exp.data.source import DataSource, open_source
from lorap_exp.errors import LorapError
from lorap_exp.evaluation.suite import Suite, prepare_suite
from lorap_exp.methods.contract import Stack, Texts, build_stack
from lorap_exp.methods.planner import plan_stack
from lorap_exp.models.checkpoint import count_parameters
from lorap_exp.models.families import family_of
from lorap_exp.models.layout import dense_shape
from lorap_exp.models.loading import digest_model, load_config, load_tokenizer, meta_model
from lorap_exp.planning.edits import Plan
from lorap_exp.planning.knapsack import Knapsack
from lorap_exp.planning.rounding import Rounding
from lorap_exp.planning.rules import LayerShares, Proportions, Rule, Uniform
from lorap_exp.planning.shapes import Shape
from lorap_exp.planning.stack import Budget
from lorap_exp.workspace.job import Job
from lorap_exp.workspace.store import Store


@dataclass(frozen=True)
class Inputs:
    """Everything a job needs apart from weights.

    Attributes:
        plan: as many parameters as asked; where they are may still change with what is measured.
        dense: shape of the original model.
        calibration: tokens (samples, length), or None.
        read: what each step trains on, by its name.
    """

    device: torch.device
    model_config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    data: DataSource
    stack: Stack
    dense: Shape
    budget: Budget
    plan: Plan
    calibration: Tensor | None
    how: Walk
    read: dict[str, Any]
    suite: Suite
    store: Store
    model_digest: str

    @property
    def trains(self) -> bool:
        """The last step trains the compressed model; a dense model has nothing to recover."""
        return self.stack.trains and not self.plan.is_dense


def prepare(cfg: Config, job: Job, device: torch.device) -> Inputs:
    """Check model, method, data and budget; plan; tokenise. No weight is read."""
    stack = build_stack(cfg.method)
    store = Store(Path(cfg.store.folder), int(cfg.store.limit_gib * 2**30)).open()
    data = open_source(cfg.data)
    model_config = load_config(cfg.model)
    for _, step in stack.steps:
        step.check(model_config)
    dense, budget = dense_shape(model_config), budget_of(cfg, model_config)
    plan = plan_stack(stack, dense, budget)
    tokenizer = load_tokenizer(cfg.model)
    bos = tokenizer.bos_token_id if family_of(model_config.model_type).bos_every_chunk else None
    suite = prepare_suite(cfg.evaluation, data, tokenizer, job.folder / "tasks", bos)
    check_length("calibration.length", cfg.calibration.length, model_config)
    needed = not plan.is_dense or cfg.analysis is not None
    texts = Texts(tokenizer, data, bos)
    return Inputs(
        device=device,
        model_config=model_config,
        tokenizer=tokenizer,
        data=data,
        stack=stack,
        dense=dense,
        budget=budget,
        plan=plan,
        calibration=calibration_ids(cfg, data, tokenizer, bos) if needed else None,
        how=Walk(
            cfg.calibration.batch_size,
            cfg.calibration.propagation,
            cfg.calibration.order,
            cfg.calibration.hidden_states,
        ),
        read={} if plan.is_dense else read_texts(stack, texts, model_config),
        suite=suite,
        store=store,
        model_digest=digest_model(cfg.model, model_config, cfg.seed),
    )


def read_texts(stack: Stack, texts: Texts, config: PreTrainedConfig) -> dict[str, Any]:
    """What the steps train on, no sequence of it longer than the model's positions."""
    for name, step in stack.steps:
        for setting, length in step.lengths().items():
            check_length(f"method.stages.{name}.{setting}", length, config)
    return {name: step.read(texts) for name, step in stack.steps}


def budget_of(cfg: Config, model_config: PreTrainedConfig) -> Budget:
    """What is asked of the method."""
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


def check_length(setting: str, length: int, model_config: PreTrainedConfig) -> None:
    """No sequence is longer than the model's positions."""
    most = getattr(model_config, "max_position_embeddings", None)
    if most is not None and length > most:
        raise LorapError(
            f"{setting} must be at most {most}, the positions of the model, got {length}"
        )


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
