"""The class that `_target_` names: a class of the method contract, and nothing is called for it.

Only modules are imported, and only classes pass that have what a stage, a removal or a recovery
must have; a function, or a class that does something else, is refused before it is called.
"""

import importlib
import inspect
import re
from dataclasses import is_dataclass
from types import ModuleType
from typing import Any

from lorap_exp.errors import LorapError, one_line

DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
OWN = "lorap_exp.methods"
CONTRACT = (
    ("compress", "prices", "statistics"),
    ("remove", "select", "plan"),
    ("recover",),
    ("apply",),
)
"""Methods of the kinds of steps: a class of the contract has all of one kind."""


def find_method_class(target: Any, setting: str = "_target_") -> type:
    """The class of a method's step.

    Args:
        target: its dotted name.
        setting: what an error names.

    Raises:
        LorapError: there is no such class, or it does not speak the method contract.
    """
    wanted = f"{setting} must name a class of {OWN} or one that speaks the method contract"
    if not isinstance(target, str) or not DOTTED.fullmatch(target):
        raise LorapError(f"{wanted}, got {target!r}")
    module, name = target.rpartition(".")[::2]
    found = getattr(_module(module, f"{wanted}, got '{target}'"), name, None)
    if not inspect.isclass(found):
        raise LorapError(f"{wanted}, got '{target}', which is no class")
    if not is_dataclass(found) or not any(_has(found, methods) for methods in CONTRACT):
        needed = "; ".join(" and ".join(methods) for methods in CONTRACT)
        raise LorapError(
            f"{wanted}: a dataclass with the methods of one kind ({needed}), got '{target}', which "
            f"is none"
        )
    return found


def _module(name: str, wrong: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # importing a user's module can raise anything
        raise LorapError(f"{wrong}: {type(error).__name__}: {one_line(error)}") from error


def _has(found: type, methods: tuple[str, ...]) -> bool:
    return all(callable(getattr(found, method, None)) for method in methods)
