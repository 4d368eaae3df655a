"""Values with their own digest inside: a file that was changed in any way is known by it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "digest"
UNDER = "of"
"""Keys that a file of a job has beside its content: its own digest, and that of what it is of."""


def seal(value: Any, of: str | None = None) -> dict[str, Any]:
    """A value with its own digest inside, and that of what it was computed of."""
    content = dict(value) if isinstance(value, Mapping) else {"value": value}
    if of is not None:
        content[UNDER] = of
    return content | {SEAL: _digest(content)}


def unseal(raw: Any, *, strict: bool = False) -> tuple[Any, str | None]:
    """The value of `seal`, and what it is of.

    Raises:
        ValueError: its digest is another one or, when strict, there is none.
    """
    if not isinstance(raw, dict) or SEAL not in raw:
        if strict:
            raise ValueError("no digest")
        return raw, None
    content = {key: value for key, value in raw.items() if key != SEAL}
    if _digest(content) != raw[SEAL]:
        raise ValueError("another digest")
    of = content.pop(UNDER, None)
    return (content["value"] if content.keys() == {"value"} else content), of


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()
