"""Everything a job needs apart from weights, checked before any is read."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from lorap_exp.calibration.sampling import digest, read_documents, sample_windows
from lorap_exp.config import Config
from lorap_exp.data.instructions import Example
from lorap_exp.data.source import DataSource, open_source
from lorap_exp.evaluation.profiles import PROFILES
from lorap_exp.evaluation.suite import Suite, prepare_suite
from lorap_exp.methods.stage import Stack, build_stack, plan_method
from lorap_exp.models.checkpoint import count_parameters
from lorap_exp.models.digests import digest_tokenizer
from lorap_exp.models.families import family_of, shapes_of
from lorap_exp.models.loading import digest_model, load_config, load_tokenizer, meta_model
from lorap_exp.models.tokenizers import check_ids, check_length, check_tokenizer
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
    check_lengths(cfg, stack, model_config)
    asked = (cfg.evaluation.zero_shot, cfg.evaluation.generation, stack.recovery)
    check_tokenizer(tokenizer, model_config, ends=any(one is not None for one in asked))
    bos = tokenizer.bos_token_id if family_of(model_config.model_type).bos_every_chunk else None
    suite = prepare_suite(cfg.evaluation, data, tokenizer, job.folder / "tasks", bos)
    needed = not plan.is_dense or cfg.analysis is not None
    ids = calibration_ids(cfg, data, tokenizer, bos) if needed else None
    tuned = stack.recovery is not None and not plan.is_dense
    examples = stack.recovery.examples(tokenizer, data, bos) if tuned and stack.recovery else []
    windows = None
    if stack.removal is not None and stack.removal.trains and not plan.is_dense:
        windows = stack.removal.windows(tokenizer, data, bos)
    texts = {f"evaluation.perplexity.texts {t.name}": chunks for t, chunks in suite.texts}
    trained = [i for i, _ in examples]
    check_ids(
        {"calibration": ids, "method.stages.layers.training": windows, **texts}
        | {"method.stages.recovery": torch.cat(trained) if trained else None},
        model_config,
    )
    model_digest = digest_model(cfg.model, model_config, cfg.seed)
    job.bind(
        {
            "model": model_digest,
            "tokenizer": digest_tokenizer(tokenizer),
            "calibration": None if ids is None else digest(ids),
            "training windows": None if windows is None else digest(windows),
            "recovery examples": digest(torch.cat(trained)) if trained else None,
        }
    )
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
        model_digest=model_digest,
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


def check_lengths(cfg: Config, stack: Stack, model_config: PreTrainedConfig) -> None:
    """Every length that is asked for, against the model's positions."""
    asked = {"calibration.length": cfg.calibration.length}
    if cfg.evaluation.perplexity is not None:
        profile = PROFILES[cfg.evaluation.perplexity.profile]
        asked[f"evaluation.perplexity.profile {profile.name}: its chunks"] = profile.length
    if stack.recovery is not None:
        asked["method.stages.recovery.cutoff"] = getattr(stack.recovery, "cutoff", 0)
    if stack.removal is not None and stack.removal.trains:
        asked["method.stages.layers.training.length"] = stack.removal.training.length
    for setting, length in asked.items():
        check_length(setting, length, model_config)


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
