"""The one exception a user is meant to read: one sentence, shown without a traceback."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

LONGEST = 300
"""Characters of another library's message that are shown."""


class LorapError(Exception):
    """Bad input or a run that cannot go on; the message names the setting and what is allowed."""


class Busy(LorapError):  # noqa: N818
    """Another process is running this very job, so there is nothing to do for it here."""


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def one_line(error: BaseException) -> str:
    """Another library's whole message on one line, shortened where it is long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


Scalar = str | int | float | None


def explain(error: ValidationError, prefix: str = "") -> str:
    """One sentence for each wrong field: its key, what is allowed, and the value given.

    What a union says about each of its members is said once.
    """
    fields: dict[str, list[Mapping[str, Any]]] = {}
    for problem in error.errors():
        parts = [prefix, *(str(part) for part in problem["loc"] if not _is_type(part))]
        fields.setdefault(".".join(part for part in parts if part), []).append(problem)
    inner = [key for key in fields if not any(name.startswith(f"{key}.") for name in fields)]
    return "; ".join(_sentence(key, fields[key]) for key in inner)


TYPES = ("str", "int", "float", "bool", "none", "list", "tuple", "dict", "literal", "function")


def _is_type(part: int | str) -> bool:
    """Whether a part of a location is the member of a union, not a field."""
    return re.split(r"[\[-]", str(part))[0] in (*TYPES, "constrained", "nullable", "is", "lax")


def _sentence(key: str, problems: Sequence[Mapping[str, Any]]) -> str:
    literals = [p["ctx"]["expected"] for p in problems if p["type"] == "literal_error"]
    problem = problems[0]
    given = shown(problem["input"])
    others = {p["type"] for p in problems} - {"literal_error"}
    if others <= {"bool_parsing", "bool_type"}:
        literals += ["true or false"] if others else []
        allowed = ", ".join(part for text in literals for part in re.split(r", | or ", text))
        return f"{key} must be one of {allowed}, got {given}"
    if problem["type"] == "value_error" and not isinstance(problem["input"], Scalar):
        said = str(problem["ctx"]["error"])
        return f"{key} {said}" if said.startswith("must ") else ".".join(filter(None, (key, said)))
    missing = problem["type"] in ("missing", "missing_argument")
    return f"{key} {_rule(problem)}" + ("" if missing else f", got {given}")


def shown(value: Any) -> str:
    """A value as people write it in a configuration."""
    plain = value is None or isinstance(value, bool)
    return json.dumps(value) if plain else repr(value)


RULES = {
    "extra_forbidden": "is not a setting (misspelled?)",
    "unexpected_keyword_argument": "is not a setting (misspelled?)",
    "missing": "must be set",
    "missing_argument": "must be set",
    "string_pattern_mismatch": "must be auto, cpu, cuda or cuda:N",
    "finite_number": "must be a finite number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "string_type": "must be text",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "dict_type": "must be a section of settings",
    "model_type": "must be a section of settings",
    "model_attributes_type": "must be a section of settings",
}
"""What is allowed, by pydantic's type of error; its own words for the others."""


def _rule(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    if problem["type"] == "too_short":
        return f"must have at least {problem['ctx']['min_length']} item(s)"
    return RULES.get(problem["type"]) or problem["msg"].replace("Input should be", "must be")
