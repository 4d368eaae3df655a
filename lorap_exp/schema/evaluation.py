"""Sections of an experiment that say what is scored and measured."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from lorap_exp.schema.values import (
    Section,
    each_once,
)

ProfileName = Literal["lorap", "sparsegpt", "svd_llm", "asvd", "c4@2048"]


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
    With `stderr` a task of choices stops when the standard error of its metric is so small.
    """

    tasks: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(each_once)]
    limit: Annotated[int, Field(ge=1)] | None
    stderr: Annotated[float, Field(gt=0, lt=0.5)] | None
    batch_size: Annotated[int, Field(ge=1)]
    batch_tokens: Annotated[int, Field(ge=1)] | None
    form: Literal["auto", "packed", "stock"]
    stability: bool

    @model_validator(mode="after")
    def _alike(self) -> "ZeroShotConfig":
        if self.stderr is not None and self.stability:
            raise ValueError(
                f"stderr must be null where stability is true: both models must be asked the same "
                f"questions, got {self.stderr}"
            )
        return self


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
