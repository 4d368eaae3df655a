"""What a chooser tried, what came of it, and why it chose what it chose."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Trial:
    """One candidate at one ratio: compressed and measured, or the reason why it was not.

    Attributes:
        samples: calibration windows.
        kept: share of the decoder's weights that stayed.
        bytes: of the saved model's tensors.
        perplexity: on the held-out windows.
        seconds: of compressing, saving and measuring.
        verdict: why it was left out; what became of it once the choice is made.
    """

    method: str
    ratio: float
    samples: int
    kept: float | None = None
    bytes: int | None = None
    perplexity: float | None = None
    seconds: float = 0.0
    verdict: str = ""


@dataclass(frozen=True)
class Choice:
    """The method and the ratio that were chosen, and all that was tried for it.

    Attributes:
        asked: name of the method that was asked for.
        dense: perplexity of the original model on the held-out windows.
        held_out: their number, length and digest.
        left_out: candidates without a trial, and why.
    """

    asked: str
    method: str
    ratio: float
    reason: str
    dense: float
    held_out: Mapping[str, Any]
    trials: tuple[Trial, ...]
    left_out: Mapping[str, str]

    @property
    def label(self) -> str:
        """The method's name in a table."""
        return self.method if self.asked == self.method else f"{self.asked}: {self.method}"

    def table(self) -> str:
        """One line for each trial, and for each candidate without one."""
        rows: list[dict[str, str]] = [
            {
                "candidate": trial.method,
                "ratio": f"{trial.ratio:g}",
                "windows": str(trial.samples),
                "kept": _number(trial.kept, ".3f"),
                "bytes": _number(trial.bytes, ","),
                "held-out perplexity": _number(trial.perplexity, ".2f"),
                "seconds": _number(trial.seconds, ".0f"),
                "verdict": trial.verdict,
            }
            for trial in self.trials
        ]
        rows += [{"candidate": name, "verdict": why} for name, why in self.left_out.items()]
        return pd.DataFrame(rows).fillna("-").to_string(index=False, max_colwidth=120)

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> "Choice":
        return Choice(**{**raw, "trials": tuple(Trial(**trial) for trial in raw["trials"])})


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
