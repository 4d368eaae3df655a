"""A suite is what a job is scored on: chunks of the perplexity texts and a folder of tasks.

It is prepared before any weight is read; its scores are kept one by one as they finish.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorap_exp.calibration.stream import Place
from lorap_exp.data.source import DataSource, Text
from lorap_exp.evaluation.accuracy import GenerationScore, TaskScore
from lorap_exp.evaluation.batches import halving
from lorap_exp.evaluation.efficiency import Efficiency, measure
from lorap_exp.evaluation.perplexity import Perplexity, cut, encode, evaluate_perplexity
from lorap_exp.evaluation.profiles import FIRST_TOKENS, PROFILES, Profile, read_text
from lorap_exp.evaluation.scores import Scores
from lorap_exp.evaluation.stability import Choices
from lorap_exp.models.digests import digest_tokenizer
from lorap_exp.models.source import Source
from lorap_exp.schema.evaluation import EfficiencyConfig, EvaluationConfig, PerplexityConfig
from lorap_exp.workspace.progress import Meter, bar, say
from lorap_exp.workspace.store import Store
from lorap_exp.workspace.versions import origins

if TYPE_CHECKING:
    from lorap_exp.evaluation.packed import Packed

T = TypeVar("T")


class Cache(Protocol):
    """Keeps finished scores."""

    def reuse(self, name: str, restore: Callable[..., T], compute: Callable[[], T]) -> T: ...
    def write(self, name: str, value: Any) -> None: ...


@dataclass(frozen=True)
class Suite:
    """Texts as (text, chunks) with their profile, and the names and folder of the tasks."""

    profile: Profile | None
    texts: tuple[tuple[Text, Tensor], ...]
    perplexity_batch: int
    tasks: tuple[str, ...]
    folder: Path
    limit: int | None
    stderr: float | None
    task_batch: int
    task_tokens: int | None
    form: str
    stability: bool
    generation: Text | None
    """The text whose passages are continued."""
    generation_batch: int
    efficiency: EfficiencyConfig | None

    def perplexities(self, source: Source, cache: Cache, place: Place) -> tuple[Perplexity, ...]:
        """Perplexity of every text."""
        scores = []
        for text, chunks in self.texts:
            assert self.profile is not None
            score_text = partial(self._perplexity, source, text, chunks, place)
            setting = "evaluation.perplexity.batch_size"
            compute = partial(halving, score_text, self.perplexity_batch, setting)
            score = cache.reuse(f"scores/{self.profile.name}-{text.name}", Perplexity, compute)
            say(f"  {text.label}: perplexity {score.perplexity:.2f}")
            scores.append(score)
        return tuple(scores)

    def _perplexity(
        self, source: Source, text: Text, chunks: Tensor, place: Place, batch_size: int
    ) -> Perplexity:
        assert self.profile is not None
        return evaluate_perplexity(
            source,
            chunks,
            place=place,
            text=text,
            profile=self.profile,
            batch_size=batch_size,
            progress=bar(f"perplexity {text.label}", "block" if source.streamed else "batch"),
        )

    def accuracies(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache
    ) -> tuple[TaskScore, ...]:
        """Accuracy on every task."""
        scores = []
        judged: list[Packed] = []
        for task in self.tasks:

            def compute(task: str = task) -> TaskScore:
                if not judged:
                    judged.append(self.judge(model, tokenizer))
                found, choices = self.answer(judged[0], task)
                cache.write(f"choices/{task}.json", asdict(choices))
                return found

            score = cache.reuse(f"scores/{task}", TaskScore, compute)
            say(f"  {task}: {100 * score.value:.1f} % of {score.samples}{levels(score)}")
            scores.append(score)
        return tuple(scores)

    def continuations(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache
    ) -> GenerationScore:
        """Next-word accuracy of greedy generation."""
        assert self.generation is not None
        run = partial(self._continue, model, tokenizer, self.generation.label)
        setting = "evaluation.generation.batch_size"
        compute = partial(halving, run, self.generation_batch, setting)
        score = cache.reuse("scores/generation", GenerationScore, compute)
        say(f"  next word: {100 * score.accuracy:.1f} % of {score.samples}")
        return score

    def _continue(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        label: str,
        batch_size: int,
    ) -> GenerationScore:
        from lorap_exp.evaluation.generation import evaluate_generation

        folder = self.folder / "generation"
        return evaluate_generation(model, tokenizer, label, folder=folder, batch_size=batch_size)

    def judge(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "Packed":
        """The model as lm-eval sees it, for all tasks."""
        from lorap_exp.evaluation.packed import Packed

        return Packed(
            model,
            tokenizer,
            batch_size=self.task_batch,
            tokens=self.task_tokens,
            form=self.form,
        )

    def answer(self, judged: "Packed", task: str) -> tuple[TaskScore, Choices]:
        """One task: its score, and how likely the model found each choice."""
        from lorap_exp.evaluation.zero_shot import evaluate_task

        def answer(batch_size: int) -> tuple[TaskScore, Choices]:
            return evaluate_task(
                judged,
                task,
                folder=self.folder,
                limit=self.limit,
                batch_size=batch_size,
                stderr=self.stderr,
            )

        return halving(answer, self.task_batch, "evaluation.zero_shot.batch_size")

    def speeds(
        self, model: PreTrainedModel, dense: Callable[[], PreTrainedModel | None], cache: Cache
    ) -> Efficiency:
        """Size and speed, beside the dense model's unless it is that itself."""
        asked = self.efficiency
        assert asked is not None
        found = cache.reuse(
            "scores/efficiency", Efficiency.restore, lambda: measure(model, dense(), asked)
        )
        for speed in found.speeds:
            faster = "" if speed.ratio is None else f", {speed.ratio:.2f} of dense"
            say(f"  {speed.what}: {speed.value:.4g}{faster}")
        return found


def levels(score: TaskScore) -> str:
    """What needs no model: guessing, and the most frequent right answer."""
    if score.chance is None or score.majority is None:
        return ""
    return f" (chance {100 * score.chance:.1f}, majority {100 * score.majority:.1f})"


def prepare_suite(
    evaluation: EvaluationConfig,
    data: DataSource,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    bos: int | None,
    store: Store,
) -> Suite:
    """Read, verify and tokenise everything that will be scored; task files go to `folder`.

    Tokens of the texts are shared with other jobs through the store.
    """
    texts: tuple[tuple[Text, Tensor], ...] = ()
    profile = None
    perplexity, zero_shot = evaluation.perplexity, evaluation.zero_shot
    generation = evaluation.generation
    if zero_shot is not None:
        from lorap_exp.evaluation.tasks import check_tasks, write_tasks

        check_tasks(zero_shot.tasks, data)
        write_tasks(zero_shot.tasks, data, folder)
    if perplexity is not None:
        profile = PROFILES[perplexity.profile]
        read = [read_text(name, profile, data) for name in perplexity.texts]
        tokens = partial(stored_tokens, tokenizer=tokenizer, bos=bos, store=store)
        texts = tuple(
            (text, cut(text, tokens(text), profile.length, limit_of(text, perplexity), bos))
            for text in read
        )
    continued = None
    if generation is not None:
        from lorap_exp.evaluation.generation import passages, write_task

        continued = read_text(generation.text, PROFILES["lorap"], data)
        write_task(passages(continued, generation.samples, generation.words), folder / "generation")
    return Suite(
        profile=profile,
        texts=texts,
        perplexity_batch=perplexity.batch_size if perplexity is not None else 1,
        tasks=zero_shot.tasks if zero_shot is not None else (),
        folder=folder,
        limit=zero_shot.limit if zero_shot is not None else None,
        stderr=zero_shot.stderr if zero_shot is not None else None,
        task_batch=zero_shot.batch_size if zero_shot is not None else 1,
        task_tokens=zero_shot.batch_tokens if zero_shot is not None else None,
        form=zero_shot.form if zero_shot is not None else "auto",
        stability=zero_shot is not None and zero_shot.stability,
        generation=continued,
        generation_batch=generation.batch_size if generation is not None else 1,
        efficiency=evaluation.efficiency,
    )


def stored_tokens(
    text: Text, tokenizer: PreTrainedTokenizerBase, bos: int | None, store: Store
) -> Tensor:
    """All tokens of a text, each text tokenised once for all jobs."""
    rules = digest_tokenizer(tokenizer)
    key = {"text": text.sha256, "tokenizer": rules, "bos": bos is not None, "versions": origins()}
    return store.tensors("tokens", key, lambda: {"ids": encode(text, tokenizer, bos)})["ids"]


def limit_of(text: Text, asked: PerplexityConfig) -> int | None:
    """Tokens of a text that are scored: the profile's and the configuration's limit."""
    limits = [n for n in (FIRST_TOKENS.get(text.name), asked.max_tokens) if n is not None]
    return min(limits, default=None)


def evaluate(
    suite: Suite,
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    cache: Cache,
    meter: Meter,
    place: Place,
    *,
    dense: Callable[[], PreTrainedModel | None],
) -> Scores:
    """Score a model on the whole suite; finished scores are read back from the cache.

    `place` is where the hidden states of a streamed model wait between blocks.
    `dense` gives the model whose speed is compared, None for the dense model itself.
    """
    perplexities: tuple[Perplexity, ...] = ()
    accuracies: tuple[TaskScore, ...] = ()
    generation = None
    if suite.texts:
        with meter.stage("perplexity"):
            perplexities = suite.perplexities(source, cache, place)
    if suite.tasks:
        with meter.stage("zero-shot"):
            accuracies = suite.accuracies(source.model, tokenizer, cache)
    if suite.generation is not None:
        with meter.stage("generation"):
            generation = suite.continuations(source.model, tokenizer, cache)
    efficiency = None
    if suite.efficiency is not None:
        with meter.stage("efficiency"):
            efficiency = suite.speeds(source.model, dense, cache)
    return Scores(perplexities, accuracies, generation, efficiency=efficiency)
