"""Sections of an experiment that say what is done: a method, or how one is chosen."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from lorap_exp.schema.values import (
    LARGEST,
    SEEDS,
    Name,
    Section,
    each_once,
)


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
