"""What a number depends on beside its settings: versions of packages, the code, the commit."""

import hashlib
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lorap_exp.workspace.extras import EXTRAS

PACKAGES = (
    "lorap-exp",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "sentencepiece",
    "numpy",
    "lm-eval",
    "datasets",
    "peft",
    "hydra-core",
    "wandb",
)
CODE = (
    "analysis",
    "calibration",
    "data",
    "evaluation",
    "methods",
    "models",
    "ops",
    "planning",
    "steps",
    "training",
)
"""What decides a number, below the package: not how a job is run, kept, reported or explained."""
NO_NUMBER = ("hydra-core", "wandb")
"""Packages of the record that change no number."""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that work on a job, for its record.

    An extra that is not installed is not in it.
    """
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            if name not in EXTRAS:
                raise
    return found


def origins() -> dict[str, str]:
    """What a stored value depends on beside its settings: code and packages that matter."""
    kept = {name: found for name, found in versions().items() if name not in NO_NUMBER}
    return kept | {"source": source_digest()}


@cache
def source_digest() -> str:
    """Stands for the code of this package that decides numbers, `CODE`."""
    return digest_code(Path(__file__).parent.parent)


def digest_code(package: Path) -> str:
    """The digest of the files of `CODE` below a package's folder.

    Raises:
        FileNotFoundError: a part of `CODE` is not there.
    """
    digest = hashlib.sha256()
    for part in CODE:
        files = sorted((package / part).rglob("*.py"))
        if not files:
            raise FileNotFoundError(f"{package / part} holds no code")
        for path in files:
            content = path.read_bytes()
            digest.update(f"{path.relative_to(package)} {len(content)}\n".encode() + content)
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
