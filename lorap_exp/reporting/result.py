"""The result of a job: JSON is the truth, every table and plot is a view of it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorap_exp.errors import LorapError
from lorap_exp.evaluation.scores import Scores
from lorap_exp.planning.edits import Plan
from lorap_exp.planning.shapes import BlockShape, Shape
from lorap_exp.reporting.choice import Choice
from lorap_exp.workspace.sealing import SEAL, unseal


@dataclass(frozen=True)
class Result:
    """One finished job. Counts are parameters, times seconds, memory bytes.

    `shapes` are those of the dense blocks; `parameters` holds the dense and the compressed counts
    by part, both counted from the model; `bytes` those of the weights: dense as the job's dtype has
    them, compressed as they are on disk; `curves` the losses of each training; `choice` what was
    chosen where `config` left the method or the ratio open.
    """

    config: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    device: str
    source: str
    comparable: bool
    calibration: dict[str, Any]
    shapes: tuple[BlockShape, ...]
    plan: Plan
    parameters: dict[str, dict[str, int]]
    bytes: dict[str, int]
    curves: dict[str, Any]
    scores: Scores
    seconds: dict[str, float]
    peak_memory: dict[str, int]
    choice: Choice | None = None

    @property
    def planned(self) -> Shape:
        """The shape of the compressed model."""
        return self.plan.shape(Shape(self.shapes))

    @property
    def kept(self) -> float:
        """Fraction of the decoder's attention and MLP weights that stayed."""
        return self.parameters["compressed"]["decoder"] / self.parameters["dense"]["decoder"]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "plan": self.plan.to_dict(),
            "kept": self.kept,
            "means": self.scores.means(),
        }

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> "Result":
        fields = {key: value for key, value in raw.items() if key not in ("kept", "means", SEAL)}
        fields["shapes"] = tuple(BlockShape.from_dict(shape) for shape in raw["shapes"])
        fields["plan"] = Plan.from_dict(raw["plan"])
        fields["choice"] = Choice.from_dict(raw["choice"]) if raw.get("choice") else None
        fields["scores"] = Scores.from_dict(raw["scores"])
        return Result(**fields)


def read_result(path: Path) -> Result | None:
    """A finished job's result, None where there is none.

    Raises:
        LorapError: it is damaged, or of another version.
    """
    if not path.is_file():
        return None
    try:
        return Result.from_dict(unseal(json.loads(path.read_text(encoding="utf-8")))[0])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise LorapError(
            f"'{path}' must be a result of this version of lorap_exp, got {type(error).__name__}: "
            f"{error}; remove it to score its job anew"
        ) from error
