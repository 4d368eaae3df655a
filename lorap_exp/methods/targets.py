"""The class that `_target_` names: a step of the method contract, and nothing is called for it.

Only modules are imported, and only dataclasses of the contract pass; a function, or a class that
does something else, is refused before it is called.
"""

import importlib
import inspect
import re
from dataclasses import is_dataclass
from types import ModuleType
from typing import Any, TypeVar

from lorap_exp.errors import LorapError, one_line

T = TypeVar("T")
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
OWN = "lorap_exp.methods"


def find_method_class(target: Any, contract: type[T], setting: str = "_target_") -> type[T]:
    """The class of a method's step.

    Args:
        target: its dotted name.
        contract: what it must be a subclass of.
        setting: what an error names.

    Raises:
        LorapError: there is no such class, or it does not speak the method contract.
    """
    wanted = f"{setting} must name a class of {OWN} or another dataclass that is a `Step`"
    if not isinstance(target, str) or not DOTTED.fullmatch(target):
        raise LorapError(f"{wanted}, got {target!r}")
    module, name = target.rpartition(".")[::2]
    found = getattr(_module(module, f"{wanted}, got '{target}'"), name, None)
    if not inspect.isclass(found):
        raise LorapError(f"{wanted}, got '{target}', which is no class")
    if not (is_dataclass(found) and issubclass(found, contract)):
        raise LorapError(f"{wanted}, got '{target}', which is none")
    return found


def _module(name: str, wrong: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # importing a user's module can raise anything
        raise LorapError(f"{wrong}: {type(error).__name__}: {one_line(error)}") from error
