"""The schema of an experiment: every key, type and range, checked before any weight is read.

Hydra composes `conf/`; `validate` turns the result into one frozen `Config`. Defaults of choices
are written in `conf/`, not here. A field marked `Bookkeeping` changes no number: it is left out of
a job's folder name, of its identity and of the table's columns.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from lorap_exp.errors import LorapError, explain
from lorap_exp.schema.values import (
    LARGEST,
    MOST_GIB,
    SEEDS,
    FolderPath,
    Name,
    Section,
    Seed,
    WandbName,
    each_once,
)

TextName = Literal["wikitext2", "ptb", "c4", "embedded"]
ProfileName = Literal["lorap", "sparsegpt", "svd_llm", "asvd", "c4@2048"]
PublishedName = Literal[
    "llama_7b", "llama2_7b", "streamline_llama2_7b", "svd_llama_7b", "llama3_8b"
]


class Bookkeeping:
    """Marks a field that changes no number: where results lie, how they are logged or computed."""


BOOKKEEPING = Bookkeeping()


def _ratio(value: float) -> float:
    if not (math.isfinite(value) and 0 <= value < 1):
        raise ValueError("must lie in [0, 1)")
    return value


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below a mapping by its dotted name; a list counts, and each of its items."""
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value
            if isinstance(value, list):
                yield from _leaves({str(at): item for at, item in enumerate(value)}, f"{name}.")


class RandomModelConfig(Section):
    """Sizes of a randomly initialised model for tests."""

    family: str
    blocks: Annotated[int, Field(ge=1, le=1000)]
    hidden_size: Annotated[int, Field(ge=2)]
    intermediate_size: Annotated[int, Field(ge=2)]
    heads: Annotated[int, Field(ge=1)]
    kv_heads: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _divisible(self) -> "RandomModelConfig":
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"hidden_size must be a multiple of 2 x heads ({2 * self.heads}), "
                f"got {self.hidden_size}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads must be a multiple of kv_heads ({self.kv_heads}), got {self.heads}"
            )
        return self


class ModelConfig(Section):
    """Where a dense model comes from: a folder, or the hub, or what was fetched for its hub id.

    Attributes:
        path: a hub id or a folder.
        revision: of a hub id; asks the hub, whatever was fetched.
    """

    name: str
    path: str | None
    revision: str | None
    random: RandomModelConfig | None

    @model_validator(mode="after")
    def _one_source(self) -> "ModelConfig":
        if (self.path is None) == (self.random is None):
            raise ValueError("path must be a hub id or a local folder (null for a random model)")
        if self.random is not None and self.revision is not None:
            raise ValueError(f"revision must be null for a random model, got {self.revision!r}")
        return self


class AllocationConfig(Section):
    """One rule over the sizes of all stages of a method.

    knapsack: least measured damage, each option keeping at least `floor` of the common share.
    layer_shares: each layer its own ratio, softmax(-importance / `temperature`), at most `cap`.
    proportions: `factors` times the ratio for some matrices or spaces, the others take the rest.
    uniform: the same share everywhere. Sizes are multiples of `round_to`.
    """

    rule: Literal["knapsack", "layer_shares", "proportions", "uniform"]
    factors: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default={})
    round_to: Annotated[int, Field(ge=1)] = 1
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.2
    cap: Annotated[float, Field(gt=0, lt=1)] = 0.9


class MethodConfig(Section):
    """An ordered stack of stages; each is a `_target_` and its fields, or null to leave it out.

    `protect` is the number of first and of last blocks that stay dense; `allocation` is one rule
    for the sizes of all stages, null for each stage's own.
    """

    name: Name
    protect: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
    stages: dict[str, dict[str, Any] | None]
    allocation: AllocationConfig | None = None

    @field_validator("stages")
    @classmethod
    def _sane(cls, stages: dict[str, Any]) -> dict[str, Any]:
        """What no stage can use, whatever its class is; its own checks follow."""
        for name, value in _leaves(stages):
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value}")
            if isinstance(value, int) and abs(value) > LARGEST:
                raise ValueError(f"{name} must lie in [-{LARGEST}, {LARGEST}], got {value}")
            if name.endswith(".seed") and isinstance(value, int) and not 0 <= value < SEEDS:
                raise ValueError(f"{name} must lie in [0, {SEEDS}), got {value}")
            if isinstance(value, list) and not value:
                raise ValueError(f"{name} must have at least one entry, got []")
            names = isinstance(value, list) and all(isinstance(item, str) for item in value)
            if names and len(set(value)) < len(value):
                raise ValueError(f"{name} must name each entry once, got {value}")
        return stages

    @field_validator("protect", mode="before")
    @classmethod
    def _two_numbers(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)) or len(value) != 2 or bool in map(type, value):
            raise ValueError("must be two whole numbers: first and last blocks that stay dense")
        return value

    @model_validator(mode="after")
    def _factors_of_proportions(self) -> "MethodConfig":
        if self.allocation and self.allocation.factors and self.allocation.rule != "proportions":
            raise ValueError(
                f"allocation.factors must be empty unless allocation.rule is proportions, got "
                f"{self.allocation.factors}"
            )
        return self


class CalibrationConfig(Section):
    """Windows of text on which statistics are taken.

    Attributes:
        text: whose; `files` takes those of `files`.
        split: of the text.
        files: paths of .txt, .jsonl, .jsonl.gz or .parquet.
        separator: what ends a document in a text file.
        samples: windows.
        length: tokens of a window.
        batch_size: windows at a time.
        propagation: inputs of a block come from the compressed blocks before it, or the originals.
        order: measured before a block is rewritten, or again behind each rewritten group.
        hidden_states: where they wait between blocks.
    """

    name: Name
    text: TextName | Literal["files"]
    split: Literal["train", "validation"]
    files: tuple[str, ...]
    separator: Literal["line", "blank_line", "file"]
    samples: Annotated[int, Field(ge=1)]
    length: Annotated[int, Field(ge=2)]
    seed: Seed
    batch_size: Annotated[int, Field(ge=1)]
    propagation: Literal["compressed", "original"]
    order: Literal["block", "group"]
    hidden_states: Literal["device", "host", "disk"]

    @model_validator(mode="after")
    def _files_when_text_is_files(self) -> "CalibrationConfig":
        if self.text == "files" and not self.files:
            raise ValueError("files must name at least one file when text is files")
        if self.text != "files" and self.files:
            raise ValueError(f"files must be [] unless text is files, got {list(self.files)}")
        return self


class PerplexityConfig(Section):
    """A profile and the texts scored under it.

    Attributes:
        profile: fixes chunk length, split and joiner: docs/evaluation.md.
        max_tokens: the first ones of each text; null for all.
    """

    profile: ProfileName
    texts: Annotated[
        tuple[Literal["wikitext2", "ptb", "c4"], ...],
        Field(min_length=1),
        AfterValidator(each_once),
    ]
    max_tokens: Annotated[int, Field(ge=2)] | None
    batch_size: Annotated[int, Field(ge=1)]


class ZeroShotConfig(Section):
    """lm-eval tasks by their names; `stability` compares each answer with the original model's.

    `form` says how likelihoods are computed: in packed rows of `batch_tokens` (null: what memory
    allows), or as stock lm-eval does, `batch_size` requests at a time; generation always is.
    """

    tasks: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(each_once)]
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

    @model_validator(mode="after")
    def _something(self) -> "EvaluationConfig":
        if not any((self.perplexity, self.zero_shot, self.generation, self.efficiency)):
            raise ValueError(
                "perplexity, zero_shot, generation and efficiency must not all be null: one must "
                "be scored"
            )
        return self


class DataConfig(Section):
    """The source of every text and question."""

    source: Literal["hub", "local", "embedded"]
    folder: Annotated[str | None, BOOKKEEPING]

    @model_validator(mode="after")
    def _folder_when_local(self) -> "DataConfig":
        if self.source == "local" and self.folder is None:
            raise ValueError("folder must be set when source is local, got null")
        if self.source == "embedded" and self.folder is not None:
            raise ValueError(f"folder must be null when source is embedded, got {self.folder!r}")
        return self


class StoreConfig(Section):
    """What jobs share: where it lies and how large it may become."""

    folder: FolderPath
    limit_gib: Annotated[float, Field(ge=0, le=MOST_GIB)]


class LoggingConfig(Section):
    """Weights & Biases."""

    name: str
    wandb: Literal["offline", "online", "disabled"]
    project: WandbName
    entity: WandbName | None


class AnalysisConfig(Section):
    """Measurements of the dense model: the energy spectrum of every matrix."""

    name: Literal["spectrum"]
    shares: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], ...],
        Field(min_length=1),
        AfterValidator(each_once),
    ]
    metrics: Annotated[
        tuple[Literal["svd", "awsvd", "afm", "activation"], ...],
        Field(min_length=1),
        AfterValidator(each_once),
    ]


class TargetConfig(Section):
    """What the compressed model must be; the ratio is then found. At most one is set.

    Attributes:
        bytes: of the saved model's tensors, in the job's dtype, at most.
        perplexity: on the held-out windows of the calibration text (see `choose`), at most.
    """

    bytes: Annotated[int, Field(ge=1)] | None
    perplexity: Annotated[float, Field(gt=1)] | None

    @model_validator(mode="after")
    def _one_goal(self) -> "TargetConfig":
        if self.bytes is not None and self.perplexity is not None:
            raise ValueError(
                f"bytes and perplexity must not both be set, got {self.bytes} and {self.perplexity}"
            )
        return self

    @property
    def name(self) -> str | None:
        """Dotted name of what is set."""
        given = {"target.bytes": self.bytes, "target.perplexity": self.perplexity}
        return next((name for name, value in given.items() if value is not None), None)


class ChooseConfig(Section):
    """How a method or a ratio is chosen where `method` is auto or a target is set.

    Attributes:
        candidates: methods of `conf/method` that are tried in this order; [] unless method is auto.
        methods: settings of each candidate, taken from its file.
        samples: calibration windows of a trial; null for all of the job's.
        held_out: further windows of the calibration text on which damage is measured.
        seconds: nothing further is tried once trials took as many; null for no limit.
    """

    candidates: Annotated[tuple[str, ...], AfterValidator(each_once)]
    methods: dict[str, MethodConfig | None]
    samples: Annotated[int, Field(ge=1)] | None
    held_out: Annotated[int, Field(ge=1)]
    seconds: Annotated[float, Field(ge=0)] | None

    @model_validator(mode="after")
    def _methods_that_compress(self) -> "ChooseConfig":
        for name in self.candidates:
            method = self.methods.get(name)
            if method is None or not any(method.stages.values()):
                raise ValueError(
                    f"candidates must be options of method that compress (`--help` lists them; "
                    f"neither auto nor dense), got {name!r}"
                )
        return self


class Config(Section):
    """One experiment.

    Attributes:
        name: folder of the sweep under `output_root`; the same command goes on where it stopped.
        ratio: share of the weights that goes, in [0, 1); null where a target is set.
        ratio_of: weights of attention and MLP, as the papers count, or all parameters.
        seed: of calibration windows and random models.
        device: auto, cpu, cuda or cuda:N.
        dtype: of the weights and of what is computed with them.
        output_root: folder of all sweeps.
        export: factors as they are, or multiplied out for tools that know only dense layers.
        stream: a block at a time from disk; auto where the weights exceed 0.6 of the free memory.
        keep_model: false removes the saved model once the job is finished.
        published: the table that the report sets beside the measured rows.
    """

    name: Annotated[Name, BOOKKEEPING]
    ratio: Annotated[float, AfterValidator(_ratio)] | None
    target: TargetConfig
    choose: ChooseConfig
    ratio_of: Literal["decoder", "model"]
    seed: Seed
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$"), BOOKKEEPING]
    dtype: Literal["float32", "bfloat16", "float16"]
    output_root: Annotated[FolderPath, BOOKKEEPING]
    store: Annotated[StoreConfig, BOOKKEEPING]
    export: Literal["factored", "dense"]
    stream: Annotated[bool | Literal["auto"], BOOKKEEPING]
    keep_model: Annotated[bool, BOOKKEEPING]
    published: Annotated[PublishedName | None, BOOKKEEPING]
    analysis: AnalysisConfig | None
    model: ModelConfig
    method: MethodConfig
    calibration: CalibrationConfig
    evaluation: EvaluationConfig
    data: DataConfig
    logging: Annotated[LoggingConfig, BOOKKEEPING]

    @model_validator(mode="after")
    def _a_method_and_a_ratio(self) -> "Config":
        """Each is given, or is to be found."""
        goal, candidates = self.target.name, list(self.choose.candidates)
        if goal is not None and self.ratio is not None:
            raise ValueError(f"ratio must be null where {goal} is set, got {self.ratio}")
        if goal is None and self.ratio is None:
            raise ValueError("ratio must lie in [0, 1) where no target is set, got null")
        if goal is not None and not candidates and not any(self.method.stages.values()):
            raise ValueError(
                f"{goal} must be null for a method without stages, got method {self.method.name}"
            )
        if candidates and any(self.method.stages.values()):
            raise ValueError(
                f"choose.candidates must be [] unless method is auto, got {candidates} and "
                f"{self.method.name}"
            )
        if candidates and self.ratio == 0:
            raise ValueError("ratio must be above 0 where method is auto, got 0")
        samples = self.choose.samples
        if samples is not None and samples > self.calibration.samples:
            raise ValueError(
                f"choose.samples must be at most calibration.samples "
                f"({self.calibration.samples}), got {samples}"
            )
        return self

    @property
    def chooses(self) -> bool:
        """The method or the ratio is to be found."""
        return bool(self.choose.candidates) or self.target.name is not None

    @property
    def candidates(self) -> dict[str, MethodConfig]:
        """The methods that may run, in their order, by name."""
        found = {name: self.choose.methods[name] for name in self.choose.candidates}
        return {n: m for n, m in found.items() if m is not None} or {self.method.name: self.method}

    def chosen(self, method: MethodConfig, ratio: float, samples: int | None = None) -> "Config":
        """The same experiment with a method and a ratio, on so many calibration windows."""
        count = self.calibration.samples if samples is None else samples
        none: dict[str, Any] = {"candidates": (), "methods": {}, "samples": None}
        return self.model_copy(
            update={
                "method": method,
                "ratio": ratio,
                "target": TargetConfig(bytes=None, perplexity=None),
                "choose": self.choose.model_copy(update=none),
                "calibration": self.calibration.model_copy(update={"samples": count}),
            }
        )

    def dump(self) -> dict[str, Any]:
        """Plain values, as written to disk."""
        return self.model_dump(mode="json")


def bookkeeping(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Dotted names of the fields that change no number; a section stands before its fields."""
    found = []
    for name, field in section.model_fields.items():
        kind: Any = field.annotation
        inner = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        if BOOKKEEPING in field.metadata:
            found.append(f"{prefix}{name}")
            found += [f"{prefix}{name}.{key}" for key in (inner.model_fields if inner else ())]
        elif inner is not None:
            found += bookkeeping(inner, f"{prefix}{name}.")
    return found


def identity(dumped: Mapping[str, Any]) -> dict[str, Any]:
    """The part that decides the numbers: without `Bookkeeping`."""
    return without(dumped, bookkeeping())


def without(dumped: Mapping[str, Any], names: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """A nested dictionary without the dotted names."""
    return {
        key: without(value, names, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in dumped.items()
        if f"{prefix}{key}" not in names
    }


def validate(raw: Mapping[str, Any]) -> Config:
    """The checked configuration, or a `LorapError` with one sentence for each wrong key."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise LorapError(explain(error)) from error
