"""Which changes of the code make stored values void."""

import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import lorap_exp
from lorap_exp.workspace import versions
from lorap_exp.workspace.versions import digest_code, origins, source_digest

PACKAGE = Path(lorap_exp.__file__).parent


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PACKAGE, tmp_path / "package"))


@pytest.mark.parametrize(
    ("name", "matters"),
    [
        ("ops/low_rank.py", True),
        ("calibration/walk.py", True),
        ("methods/low_rank.py", True),
        ("models/loading.py", True),
        ("evaluation/perplexity.py", True),
        ("planning/rules.py", True),
        ("data/local.py", True),
        ("training/loop.py", True),
        ("steps/compress.py", True),
        ("methods/new.py", True),
        ("reporting/drawing.py", False),
        ("commands/main.py", False),
        ("workspace/store.py", False),
        ("errors.py", False),
    ],
)
def test_code_that_matters(copy: Path, name: str, matters: bool) -> None:
    before = digest_code(copy)
    assert before == source_digest()
    with (copy / name).open("a") as file:
        file.write("# a change\n")
    assert (digest_code(copy) != before) == matters


def test_packages_that_matter() -> None:
    found = origins()
    assert {"numpy", "tokenizers", "torch", "transformers", "source"} <= found.keys()
    assert "wandb" not in found


def test_the_record_leaves_out_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(missing: str) -> Callable[[str], str]:
        def found(name: str) -> str:
            if name == missing:
                raise PackageNotFoundError(name)
            return version(name)

        return found

    monkeypatch.setattr(versions, "version", without("peft"))
    assert "peft" not in versions.versions() and "lm-eval" in versions.versions()
    monkeypatch.setattr(versions, "version", without("torch"))
    with pytest.raises(PackageNotFoundError):
        versions.versions()
