"""The layout is the architecture: imports point down."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lorap_exp"


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("package", ["ops", "planning"])
def test_mathematics_and_planning_import_nothing_of_ours(package: str) -> None:
    for path in (PACKAGE / package).glob("*.py"):
        ours = {name for name in imports(path) if name.startswith("lorap_exp")}
        assert all(name.startswith(f"lorap_exp.{package}") for name in ours), path


def test_planning_never_imports_torch() -> None:
    for path in (PACKAGE / "planning").glob("*.py"):
        assert not any(name.split(".")[0] == "torch" for name in imports(path)), path


def test_the_saved_modelling_file_is_complete_in_itself() -> None:
    found = imports(PACKAGE / "models" / "modeling_compressed.py")
    assert {name.split(".")[0] for name in found} == {"torch", "transformers"}


def test_methods_do_not_know_the_pipeline() -> None:
    for folder in ("methods", "models", "calibration", "evaluation", "data"):
        for path in (PACKAGE / folder).glob("*.py"):
            assert not imports(path) & {"lorap_exp.pipeline", "lorap_exp.cli", "lorap_exp.job"}
