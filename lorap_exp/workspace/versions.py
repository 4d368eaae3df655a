"""What a number depends on beside its settings: versions of packages, the code, the commit."""

import hashlib
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("lorap-exp", "torch", "transformers", "lm-eval", "datasets", "hydra-core", "wandb")


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
