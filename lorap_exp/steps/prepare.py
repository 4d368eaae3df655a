"""Everything a job needs apart from weights, checked before any is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from lorap_exp.calibration.sampling import digest, read_documents, sample_windows
from lorap_exp.calibration.walk import Walk
from lorap_exp.config import AllocationConfig, Config
from lorap_exp.data.source import DataSource, open_source
from lorap_exp.errors import LorapError
from lorap_exp.evaluation.profiles import PROFILES
from lorap_exp.evaluation.suite import Suite, prepare_suite
from lorap_exp.methods.contract import Stack, Texts, build_stack
from lorap_exp.methods.planner import plan_stack
from lorap_exp.models.checkpoint import count_parameters
from lorap_exp.models.digests import digest_tokenizer
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
from lorap_exp.workspace.digests import digest_file
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
        streamed: blocks come from disk; decided once for the job (`steps.stream`).
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
    streamed: bool = False

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
    if stack.steps or cfg.analysis is not None:
        check_dense(cfg.model, model_config)
    for _, step in stack.steps:
        step.check(model_config)
    dense, budget = dense_shape(model_config), budget_of(cfg, model_config)
    plan = plan_stack(stack, dense, budget)
    check_export(cfg, plan)
    tokenizer = load_tokenizer(cfg.model)
    check_lengths(cfg, stack, model_config)
    asked = (cfg.evaluation.zero_shot, cfg.evaluation.generation)
    ends = stack.trains or any(suite is not None for suite in asked)
    check_tokenizer(tokenizer, model_config, ends=ends)
    bos = tokenizer.bos_token_id if family_of(model_config).bos_every_chunk else None
    suite = prepare_suite(cfg.evaluation, data, tokenizer, job.folder / "tasks", bos)
    needed = not plan.is_dense or cfg.analysis is not None
    calibration = calibration_ids(cfg, data, tokenizer, bos) if needed else None
    stack = stack.at(cfg.ratio)
    texts = Texts(tokenizer, data, bos)
    read = {} if plan.is_dense else {name: step.read(texts) for name, step in stack.steps}
    trained = {f"method.stages.{name}": trained_ids(found) for name, found in read.items()}
    scored = {f"evaluation.perplexity.texts {t.name}": chunks for t, chunks in suite.texts}
    check_ids({"calibration": calibration, **trained, **scored}, model_config)
    model_digest = digest_model(cfg.model, model_config, cfg.seed)
    texts_read = {"calibration": calibration, **trained}
    files = local_files(cfg)
    job.bind(
        {"model": model_digest, "tokenizer": digest_tokenizer(tokenizer)}
        | {name: None if ids is None else digest(ids) for name, ids in texts_read.items()}
    )
    job.write("files.json", files)
    return Inputs(
        device=device,
        model_config=model_config,
        tokenizer=tokenizer,
        data=data,
        stack=stack,
        dense=dense,
        budget=budget,
        plan=plan,
        calibration=calibration,
        how=Walk(
            cfg.calibration.batch_size,
            cfg.calibration.propagation,
            cfg.calibration.order,
            cfg.calibration.hidden_states,
        ),
        read=read,
        suite=suite,
        store=store,
        model_digest=model_digest,
    )


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
