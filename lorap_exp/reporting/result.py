"""The result of a job: JSON is the truth, every table and plot is a view of it."""

import hashlib
import platform
import subprocess
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lorap_exp.evaluation.scores import Scores
from lorap_exp.planning.plan import BlockShape, Plan

PACKAGES = ("lorap-exp", "torch", "transformers", "lm-eval", "datasets", "hydra-core", "wandb")


@dataclass(frozen=True)
class Result:
    """One finished job. Counts are parameters, times seconds, memory bytes.

    `shapes` are those of the dense blocks; `parameters` holds the dense and the compressed counts
    by part, both counted from the model; `curves` the losses of each training.
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
    curves: dict[str, Any]
    scores: Scores
    seconds: dict[str, float]
    peak_memory: dict[str, int]

    @property
    def kept(self) -> float:
        """Fraction of the decoder's attention and MLP weights that stayed."""
        return self.parameters["compressed"]["decoder"] / self.parameters["dense"]["decoder"]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "kept": self.kept,
            "means": self.scores.means(),
        }

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> "Result":
        fields = {key: value for key, value in raw.items() if key not in ("kept", "means")}
        fields["shapes"] = tuple(BlockShape.from_dict(shape) for shape in raw["shapes"])
        fields["plan"] = Plan.from_dict(raw["plan"])
        fields["scores"] = Scores.from_dict(raw["scores"])
        return Result(**fields)


def versions() -> dict[str, str]:
    """Versions of Python and of every package that can change a number."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


@cache
def source_digest() -> str:
    """Stands for the code of this package."""
    here = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        digest.update(str(path.relative_to(here)).encode() + path.read_bytes())
    return digest.hexdigest()


def commit() -> str | None:
    """The commit of the source tree, `+` when it has local changes; None outside a checkout."""
    here = Path(__file__).parent
    try:
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(here, "status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
