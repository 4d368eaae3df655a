"""Everything that a model was scored on."""

from dataclasses import asdict, dataclass
from typing import Any

from lorap_exp.evaluation.accuracy import (
    GenerationScore,
    TaskScore,
    commonsense,
    mean_acc,
    mean_paper,
)
from lorap_exp.evaluation.efficiency import Efficiency
from lorap_exp.evaluation.perplexity import Perplexity
from lorap_exp.evaluation.stability import Stability


@dataclass(frozen=True)
class Scores:
    """Everything that was evaluated; means are over those of the seven that were asked for."""

    perplexity: tuple[Perplexity, ...]
    tasks: tuple[TaskScore, ...]
    generation: GenerationScore | None = None
    stability: tuple[Stability, ...] = ()
    efficiency: Efficiency | None = None

    def seconds(self) -> dict[str, float]:
        """Seconds of the evaluation, over all processes that took part in it."""
        found = {
            "perplexity": [score.seconds for score in self.perplexity],
            "zero-shot": [score.seconds for score in self.tasks],
            "generation": [self.generation.seconds] if self.generation else [],
        }
        return {stage: sum(seconds) for stage, seconds in found.items() if seconds}

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> "Scores":
        return Scores(
            tuple(Perplexity(**p) for p in raw["perplexity"]),
            tuple(TaskScore(**t) for t in raw["tasks"]),
            GenerationScore(**raw["generation"]) if raw["generation"] else None,
            tuple(Stability(**s) for s in raw["stability"]),
            Efficiency.restore(**raw["efficiency"]) if raw["efficiency"] else None,
        )

    def means(self) -> dict[str, Any]:
        """`mean7_paper` and `mean7_acc` (named by the number of tasks), each value and stderr."""
        means: dict[str, Any] = {}
        if tasks := commonsense(self.tasks):
            means[f"mean{len(tasks)}_paper"] = asdict(mean_paper(tasks))
            means[f"mean{len(tasks)}_acc"] = asdict(mean_acc(tasks))
        for name in ("stability", "agreement") if self.stability else ():
            value = sum(getattr(one, name) for one in self.stability) / len(self.stability)
            means[name] = {"value": value, "stderr": None}
        return means
