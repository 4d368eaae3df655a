"""The schema of an experiment: every key, type and range, checked before any weight is read.

Hydra composes `conf/`; `validate` turns the result into one frozen `Config`. Defaults of choices
are written in `conf/`, not here.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from lorap_exp.errors import LorapError

TextName = Literal["wikitext2", "ptb", "c4", "embedded"]
ProfileName = Literal["lorap", "sparsegpt", "svd_llm", "asvd", "c4@2048"]


Scalar = str | int | float | None


def _ratio(value: float) -> float:
    if not (math.isfinite(value) and 0 <= value < 1):
        raise ValueError("must lie in [0, 1)")
    return value


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class WheelConfig(Section):
    """A GGUF file inside PyPI wheels, in parts `module/file`: a real model without a hub.

    It stands for the hub id `of`, and is not used when `model.path` names anything else.
    """

    of: str
    name: str
    requirement: str
    parts: tuple[str, ...]


class RandomModelConfig(Section):
    """Sizes of a randomly initialised model for tests."""

    family: str
    blocks: Annotated[int, Field(ge=1)]
    hidden_size: Annotated[int, Field(ge=2)]
    intermediate_size: Annotated[int, Field(ge=2)]
    heads: Annotated[int, Field(ge=1)]
    kv_heads: Annotated[int, Field(ge=1)]


class ModelConfig(Section):
    """Where a dense model comes from: a wheel when installed, else hub or folder."""

    name: str
    path: str | None
    revision: str | None
    wheel: WheelConfig | None
    random: RandomModelConfig | None

    @model_validator(mode="after")
    def _one_source(self) -> "ModelConfig":
        if (self.path is None) == (self.random is None):
            raise ValueError("path must be a hub id or a local folder (null for a random model)")
        return self


class MethodConfig(Section):
    """An ordered stack of stages; each is a `_target_` and its fields, or null to leave it out.

    `protect` is the number of first and of last blocks that stay dense.
    """

    name: str
    protect: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
    stages: dict[str, dict[str, Any] | None]


class CalibrationConfig(Section):
    """Windows of text on which statistics are taken."""

    name: str
    text: TextName | Literal["files"]
    split: Literal["train", "validation"]
    files: tuple[str, ...]
    separator: Literal["line", "blank_line", "file"]
    samples: Annotated[int, Field(ge=1)]
    length: Annotated[int, Field(ge=2)]
    seed: int
    batch_size: Annotated[int, Field(ge=1)]
    propagation: Literal["compressed", "original"]

    @model_validator(mode="after")
    def _files_when_text_is_files(self) -> "CalibrationConfig":
        if self.text == "files" and not self.files:
            raise ValueError("files must name at least one file when text is files")
        return self


class PerplexityConfig(Section):
    """A profile and the texts scored under it."""

    profile: ProfileName
    texts: Annotated[tuple[Literal["wikitext2", "ptb", "c4"], ...], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=2)] | None
    batch_size: Annotated[int, Field(ge=1)]


class ZeroShotConfig(Section):
    """lm-eval tasks by their names; `stability` compares each answer with the original model's.

    `form` says how likelihoods are computed: in packed rows of `batch_tokens` (null: what memory
    allows), or as stock lm-eval does, `batch_size` requests at a time; generation always is.
    """

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    limit: Annotated[int, Field(ge=1)] | None
    batch_size: Annotated[int, Field(ge=1)]
    batch_tokens: Annotated[int, Field(ge=1)] | None
    form: Literal["auto", "packed", "stock"]
    stability: bool


class GenerationConfig(Section):
    """Greedy generation: the word after the first `words` words of passages of a text."""

    text: Literal["wikitext2", "ptb"]
    samples: Annotated[int, Field(ge=1)]
    words: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]


class EfficiencyConfig(Section):
    """Speed of a model beside the dense one's: prompts of `prompt` tokens, `tokens` decoded.

    `compiled` also decodes with torch.compile(mode="reduce-overhead"), which on CUDA records
    graphs; null does so on CUDA.
    """

    prompt: Annotated[int, Field(ge=2)]
    tokens: Annotated[int, Field(ge=2)]
    batches: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    repeats: Annotated[int, Field(ge=2)]
    compiled: bool | None


class EvaluationConfig(Section):
    """A suite: perplexity, tasks, generation, efficiency, any of them."""

    name: str
    perplexity: PerplexityConfig | None
    zero_shot: ZeroShotConfig | None
    generation: GenerationConfig | None
    efficiency: EfficiencyConfig | None


class DataConfig(Section):
    """The source of every text and question."""

    source: Literal["hub", "local", "embedded"]
    folder: str | None

    @model_validator(mode="after")
    def _folder_when_local(self) -> "DataConfig":
        if self.source == "local" and self.folder is None:
            raise ValueError("folder must be set when source is local, got null")
        return self


class StoreConfig(Section):
    """What jobs share: where it lies and how large it may become."""

    folder: str
    limit_gib: Annotated[float, Field(ge=0)]


class LoggingConfig(Section):
    """Weights & Biases."""

    name: str
    wandb: Literal["offline", "online", "disabled"]
    project: str
    entity: str | None


class AnalysisConfig(Section):
    """Measurements of the dense model: the energy spectrum of every matrix."""

    name: Literal["spectrum"]
    shares: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)]
    metrics: Annotated[
        tuple[Literal["svd", "awsvd", "afm", "activation"], ...], Field(min_length=1)
    ]


class Config(Section):
    """One experiment."""

    name: str
    ratio: Annotated[float, AfterValidator(_ratio)]
    ratio_of: Literal["decoder", "model"]
    seed: int
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
    dtype: Literal["float32", "bfloat16", "float16"]
    output_root: str
    store: StoreConfig
    export: Literal["factored", "dense"]
    keep_model: bool
    published: Literal["llama_7b"] | None
    analysis: AnalysisConfig | None
    model: ModelConfig
    method: MethodConfig
    calibration: CalibrationConfig
    evaluation: EvaluationConfig
    data: DataConfig
    logging: LoggingConfig

    def dump(self) -> dict[str, Any]:
        """Plain values, as written to disk."""
        return self.model_dump(mode="json")


def identity(dumped: Mapping[str, Any]) -> dict[str, Any]:
    """The part that decides the numbers: not where results are written or logged."""
    return {
        k: v
        for k, v in dumped.items()
        if k not in ("name", "output_root", "store", "keep_model", "published", "logging")
    }


def validate(raw: Mapping[str, Any]) -> Config:
    """The checked configuration, or a `LorapError` with one sentence for each wrong key."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise LorapError(explain(error)) from error


def explain(error: ValidationError, prefix: str = "") -> str:
    """One sentence for each wrong field: its key, what is allowed, and the value given."""
    sentences = []
    for problem in error.errors():
        parts = [prefix, *(str(p) for p in problem["loc"] if p not in ("str", "int", "float"))]
        key = ".".join(part for part in parts if part)
        if problem["type"] == "value_error" and not isinstance(problem["input"], Scalar):
            sentences.append(".".join(filter(None, (key, str(problem["ctx"]["error"])))))
            continue
        missing = problem["type"] in ("missing", "missing_argument")
        given = "" if missing else f", got {problem['input']!r}"
        sentences.append(f"{key} {_rule(problem)}{given}")
    return "; ".join(sentences)


def _rule(problem: Mapping[str, Any]) -> str:
    context = problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            return "is not a setting (misspelled?)"
        case "missing" | "missing_argument":
            return "must be set"
        case "literal_error":
            return f"must be one of {context['expected']}"
        case "string_pattern_mismatch":
            return "must be auto, cpu, cuda or cuda:N"
        case "value_error":
            return str(context["error"])
        case _:
            return problem["msg"].replace("Input should be", "must be")
