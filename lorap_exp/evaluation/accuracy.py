"""What a model scored on tasks, and means over them.

Apart from what asks the model, so that results are read and reported without lm-eval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorap_exp.data.tasks import COMMONSENSE


@dataclass(frozen=True)
class TaskScore:
    """What a model scored on one task, as fractions.

    Attributes:
        metric: the one that is reported, `value` with its `stderr` (None where lm-eval's
            aggregation is not a mean).
        metrics: all of lm-eval's, by its names (`acc`, `exact_match,strict-match`).
        chance: the accuracy of guessing, and `majority` of always giving the most frequent right
            answer, on these questions; None where nothing is chosen.
        shots: examples in each prompt.
        form: how likelihoods were computed, `packed` or `stock`.
    """

    task: str
    samples: int
    metric: str
    value: float
    stderr: float | None
    metrics: dict[str, float]
    chance: float | None
    majority: float | None
    shots: int
    form: str
    seconds: float

    @property
    def acc(self) -> tuple[float, float]:
        """Plain accuracy and its standard error."""
        return self.metrics["acc"], binomial_stderr(self.metrics["acc"], self.samples)


@dataclass(frozen=True)
class GenerationScore:
    """Share of the passages of a text whose next word was generated, with its standard error."""

    label: str
    samples: int
    accuracy: float
    stderr: float
    seconds: float


def binomial_stderr(accuracy: float, samples: int) -> float:
    """Standard error of a mean of zeros and ones, with the sample variance."""
    return math.sqrt(accuracy * (1 - accuracy) / (samples - 1)) if samples > 1 else math.nan


@dataclass(frozen=True)
class Mean:
    """A plain mean over tasks and its standard error."""

    value: float
    stderr: float


def commonsense(scores: Sequence[TaskScore]) -> list[TaskScore]:
    """Those of the papers' seven; others stand beside the means, not in them."""
    return [score for score in scores if score.task in COMMONSENSE]


def mean_paper(scores: Sequence[TaskScore]) -> Mean:
    """Mean of the paper's metric of each task (`mean7_paper` over all seven)."""
    return _mean(
        [(score.value, math.nan if score.stderr is None else score.stderr) for score in scores]
    )


def mean_acc(scores: Sequence[TaskScore]) -> Mean:
    """Mean of plain accuracies (`mean7_acc` over all seven)."""
    return _mean([score.acc for score in scores])


def _mean(pairs: Sequence[tuple[float, float]]) -> Mean:
    """Tasks are independent, so variances add."""
    count = len(pairs)
    return Mean(
        sum(value for value, _ in pairs) / count,
        math.sqrt(sum(stderr**2 for _, stderr in pairs)) / count,
    )
