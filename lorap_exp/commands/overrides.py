"""What is typed, as Hydra takes it: values that its grammar does not know are quoted for it.

Paths hold what that grammar keeps for itself (`=` in our own output folders, `~`, spaces, accents);
the same key twice is refused, where Hydra would take the last one without a word.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep
from hydra.errors import HydraException

from lorap_exp.errors import LorapError

OVERRIDE = re.compile(r"(?P<key>(?:\+{0,2}|~)[\w./@:-]+)=(?P<value>.*)", re.DOTALL)


def prepared(arguments: Sequence[str]) -> list[str]:
    """The arguments with their values quoted where Hydra could not read them.

    Raises:
        LorapError: a key is given twice.
    """
    given: dict[str, str] = {}
    for argument in arguments:
        if (found := OVERRIDE.fullmatch(argument)) is None or found["key"].startswith("-"):
            continue
        key = found["key"].lstrip("+~")
        if key in given:
            raise LorapError(f"{key} must be given once, got {given[key]!r} and {found['value']!r}")
        given[key] = found["value"]
    return [quoted(argument) for argument in arguments]


def check_sweeps(arguments: Sequence[str], options: Callable[[str], Sequence[str]]) -> None:
    """Raise where a sweep runs over no value, or over an interval without a search.

    Args:
        arguments: as Hydra takes them.
        options: of a group, by its name.
    """
    for argument in arguments:
        if OVERRIDE.fullmatch(argument) is None or not _readable(argument):
            continue
        override = OverridesParser.create().parse_override(argument)
        if not override.is_sweep_override():
            continue
        key, value = override.key_or_group, override.value()
        if isinstance(value, IntervalSweep):
            raise LorapError(
                f"{key} must be a list of values (an interval needs experiment=search/allocation), "
                f"got '{override.get_value_string()}'"
            )
        values = (
            value.filter(options(key)) if isinstance(value, Glob) else override.sweep_iterator()
        )
        if not any(True for _ in values):
            raise LorapError(
                f"{key} must have at least one value, got '{override.get_value_string()}'"
            )


def quoted(argument: str) -> str:
    """An override whose value Hydra reads; others, and what is no override, stay as they are."""
    found = OVERRIDE.fullmatch(argument)
    if found is None or argument.startswith("-"):
        return argument
    key, value = found["key"], found["value"]
    is_one_path = "," in value and Path(value).expanduser().exists()
    if is_one_path:
        return f"{key}={_quote(value)}"
    if _readable(argument):
        return argument
    inner = value[1:-1] if value[:1] == "[" and value[-1:] == "]" else None
    parts = ",".join(
        part if _readable(f"{key}={part}") else _quote(part)
        for part in _parts(value if inner is None else inner)
    )
    repaired = f"{key}={parts}" if inner is None else f"{key}=[{parts}]"
    return repaired if _readable(repaired) else argument


def _parts(value: str) -> list[str]:
    """A list's values: what lies between commas, but a path that holds commas is one of them."""
    pieces, found = value.split(","), []
    while pieces:
        size = next(
            (n for n in range(len(pieces), 1, -1) if Path(",".join(pieces[:n])).exists()), 1
        )
        found.append(",".join(pieces[:size]).strip())
        del pieces[:size]
    return found


def _quote(value: str) -> str:
    mark = '"' if "'" in value else "'"
    tail = len(value) - len(value.rstrip("\\"))
    return f"{mark}{value.replace(mark, chr(92) + mark)}{chr(92) * tail}{mark}"


def _readable(argument: str) -> bool:
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True
