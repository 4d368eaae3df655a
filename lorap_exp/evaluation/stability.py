"""Does a compressed model still answer as the original did? LLM-Streamline's stability.

arXiv 2403.19135, section 4. For item i with k choices, whose mean negative log-likelihoods under
the *original* model are PPL_ij (the quantity that the paper's harness calls PPL), std_i is their
standard deviation with k - 1. Stability is the share of sum exp(std_i) held by the items that are
right before and after, or wrong before and after; 1 for an unchanged model.
"""

import math
from collections import Counter
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Choices:
    """The choices of a task's items: index of the right one, and nats per token of each.

    Both are empty for a task in which nothing is chosen.
    """

    gold: tuple[int, ...]
    nll: tuple[tuple[float, ...], ...]

    @staticmethod
    def restore(gold: list[int], nll: list[list[float]]) -> "Choices":
        return Choices(tuple(gold), tuple(tuple(row) for row in nll))

    def chance(self) -> float | None:
        """Accuracy of guessing; questions may have different numbers of choices."""
        return fmean(1 / len(row) for row in self.nll) if self.nll else None

    def majority(self) -> float | None:
        """Accuracy of always giving the most frequent right answer."""
        return Counter(self.gold).most_common(1)[0][1] / len(self.gold) if self.gold else None

    def right(self) -> list[bool]:
        """Whether the likeliest choice is the right one."""
        return [
            min(range(len(row)), key=lambda j: row[j]) == gold
            for gold, row in zip(self.gold, self.nll, strict=True)
        ]


@dataclass(frozen=True)
class Stability:
    """Weighted and plain share of the items that kept their being right or wrong."""

    task: str
    items: int
    stability: float
    agreement: float


def compare(task: str, before: Choices, after: Choices) -> Stability:
    """Stability of `after` against the original model's choices on the same items.

    Raises:
        ValueError: the items are not the same.
    """
    if before.gold != after.gold:
        raise ValueError(
            f"the items of {task} must be the same before and after, got {len(before.gold)} "
            f"and {len(after.gold)}"
        )
    kept = [a == b for a, b in zip(before.right(), after.right(), strict=True)]
    spreads = [stdev(row) for row in before.nll]
    weights = [math.exp(spread - max(spreads)) for spread in spreads]
    held = sum(weight for weight, same in zip(weights, kept, strict=True) if same)
    return Stability(task, len(kept), held / sum(weights), sum(kept) / len(kept))
