"""The schema of an experiment: every key, type and range, checked before any weight is read.

Hydra composes `conf/`; `validate` turns the result into one frozen `Config`. Defaults of choices
are written in `conf/`, not here. A field marked `Bookkeeping` changes no number: it is left out of
a job's folder name, of its identity and of the table's columns.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    ValidationError,
    model_validator,
)

from lorap_exp.errors import LorapError, explain
from lorap_exp.schema.evaluation import AnalysisConfig, EvaluationConfig
from lorap_exp.schema.inputs import CalibrationConfig, DataConfig, ModelConfig
from lorap_exp.schema.method import ChooseConfig, MethodConfig, TargetConfig
from lorap_exp.schema.values import (
    BOOKKEEPING,
    MOST_GIB,
    FolderPath,
    Name,
    Section,
    Seed,
    WandbName,
)

PublishedName = Literal[
    "llama_7b", "llama2_7b", "streamline_llama2_7b", "svd_llama_7b", "llama3_8b"
]


def _ratio(value: float) -> float:
    if not (math.isfinite(value) and 0 <= value < 1):
        raise ValueError("must lie in [0, 1)")
    return value


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
