"""The layout is the architecture: imports point down, in every folder."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lorap_exp"
FLOORS = (
    "errors",
    "ops",
    "planning",
    "schema",
    "config",
    "workspace",
    "data",
    "models",
    "calibration",
    "training",
    "evaluation",
    "methods",
    "analysis",
    "reporting",
    "steps",
    "pipeline",
    "commands",
    "__main__",
)
"""From the lowest to the highest: a module imports from its own floor and from those below."""


def imports(path: Path) -> set[str]:
    """Absolute names of everything a module imports; relative ones are resolved."""
    package = ("lorap_exp", *path.relative_to(PACKAGE).with_suffix("").parts)[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            found.add(".".join(filter(None, (*base, node.module))))
    return found


def floor(name: str) -> int:
    return FLOORS.index(name.split(".")[1])


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = FLOORS.index(path.relative_to(PACKAGE).with_suffix("").parts[0])
    ours = {name for name in imports(path) if name.startswith("lorap_exp.")}
    assert not {name for name in ours if floor(name) > own}


def test_every_folder_and_module_has_its_floor() -> None:
    found = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in MODULES}
    assert found <= set(FLOORS)


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
    roots = {name.split(".")[0] for name in found}
    assert roots - sys.stdlib_module_names == {"torch", "transformers"}


@pytest.mark.parametrize("code", ["import lorap_exp", "sys.argv[1:] = ['--help']; main()"])
def test_help_answers_without_torch(code: str) -> None:
    program = (
        f"import sys; from lorap_exp.commands.main import main; {code}; "
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
