"""Everything a job needs apart from weights, checked before any is read."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from lorap_exp.calibration.sampling import read_documents, sample_windows
from lorap_exp.config import Config
from lorap_exp.data.instructions import Example
from lorap_exp.data.source import DataSource, open_source
from lorap_exp.errors import LorapError
from lorap_exp.evaluation.suite import Suite, prepare_suite
from lorap_exp.methods.stage import Stack, build_stack, plan_method
from lorap_exp.models.checkpoint import count_parameters
from lorap_exp.models.families import meta_model, shapes_of
from lorap_exp.models.loading import digest_model, load_config, load_tokenizer
from lorap_exp.models.structure import traits_of
from lorap_exp.planning.plan import Plan, Removal
from lorap_exp.workspace.job import Job
from lorap_exp.workspace.store import Store


@dataclass(frozen=True)
class Inputs:
    """Everything a job needs apart from weights.

    `calibration` (samples, length) and `windows`, the training tokens of a replacement, may be
    None; `plan` has the sizes, and the layers to remove at a provisional place.
    """

    device: torch.device
    model_config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    data: DataSource
    stack: Stack
    plan: Plan
    calibration: Tensor | None
    windows: Tensor | None
    examples: list[Example]
    suite: Suite
    store: Store
    model_digest: str

    @property
    def recovers(self) -> bool:
        """A dense model has nothing to recover."""
        return self.stack.recovery is not None and not self.plan.is_dense


def prepare(cfg: Config, job: Job, device: torch.device) -> Inputs:
    """Check model, method, data and budget; plan; tokenise. No weight is read."""
    stack = build_stack(cfg.method)
    store = Store(Path(cfg.store.folder), int(cfg.store.limit_gib * 2**30)).open()
    data = open_source(cfg.data)
    model_config = load_config(cfg.model)
    if stack.removal is not None:
        stack.removal.check(model_config)
    plan = plan_job(cfg, stack, model_config)
    tokenizer = load_tokenizer(cfg.model)
    bos = tokenizer.bos_token_id if traits_of(model_config.model_type).bos_every_chunk else None
    suite = prepare_suite(cfg.evaluation, data, tokenizer, job.folder / "tasks", bos)
    check_length("calibration.length", cfg.calibration.length, model_config)
    needed = not plan.is_dense or cfg.analysis is not None
    ids = calibration_ids(cfg, data, tokenizer, bos) if needed else None
    tuned = stack.recovery is not None and not plan.is_dense
    examples = stack.recovery.examples(tokenizer, data, bos) if tuned and stack.recovery else []
    windows = None
    if stack.removal is not None and stack.removal.trains and not plan.is_dense:
        length = stack.removal.training.length
        check_length("method.stages.layers.training.length", length, model_config)
        windows = stack.removal.windows(tokenizer, data, bos)
    return Inputs(
        device=device,
        model_config=model_config,
        tokenizer=tokenizer,
        data=data,
        stack=stack,
        plan=plan,
        calibration=ids,
        windows=windows,
        examples=examples,
        suite=suite,
        store=store,
        model_digest=digest_model(cfg.model, model_config, cfg.seed),
    )


def plan_job(
    cfg: Config, stack: Stack, model_config: PreTrainedConfig, chosen: Removal | None = None
) -> Plan:
    """Sizes of everything that stays; `chosen` once the layers to remove are known."""
    empty = meta_model(model_config)
    return plan_method(
        stack,
        shapes_of(empty),
        cfg.ratio,
        protect=cfg.method.protect,
        whole=count_parameters(empty)["total"] if cfg.ratio_of == "model" else None,
        chosen=chosen,
    )


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
