"""Kinds of values that settings have: names, folders, seeds, and the section that holds them."""

import re
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

SEEDS = 2**32
"""Seeds are below it: every random generator takes them."""
LONGEST_NAME = 200
MOST_GIB = 2.0**33
"""No store is larger."""
LARGEST = 2**63 - 1
"""Whole numbers are at most this: what a file and every library can hold."""


class Bookkeeping:
    """Marks a field that changes no number: where results lie, how they are logged or computed."""


BOOKKEEPING = Bookkeeping()

Seed = Annotated[int, Field(ge=0, lt=SEEDS)]


def plain_name(value: str) -> str:
    """A name that leads into no other folder, and that a folder can have."""
    if len(value.encode()) > LONGEST_NAME:
        raise ValueError(f"must have at most {LONGEST_NAME} bytes")
    if not value or value != value.strip() or value in (".", "..") or _UNSAFE.search(value):
        raise ValueError("must be a folder's name of visible characters, without / and \\")
    return value


_UNSAFE = re.compile(r"[/\\\x00-\x1f\x7f]")


def folder_path(value: str) -> str:
    """A path that is one."""
    if not value.strip() or "\0" in value:
        raise ValueError("must be a folder")
    return value


def wandb_name(value: str) -> str:
    """A name that Weights & Biases takes."""
    if not re.fullmatch(r"[^/\\#?%:\x00-\x1f]{1,128}", value):
        raise ValueError("must be a name of W&B: 1 to 128 characters without / \\ # ? % :")
    return value


def each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """A list without repetitions."""
    if len(set(values)) < len(values):
        raise ValueError(f"must name each entry once, got {list(values)}")
    return values


Name = Annotated[str, AfterValidator(plain_name)]
WandbName = Annotated[str, AfterValidator(wandb_name)]
FolderPath = Annotated[str, AfterValidator(folder_path)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        """Neither true for 1, nor a whole number that no library holds."""
        if isinstance(value, bool):
            kind = cls.model_fields[info.field_name or ""].annotation
            if bool not in (kind, *get_args(kind)):
                raise ValueError("must not be true or false")
        elif isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError(f"must lie in [-{LARGEST}, {LARGEST}]")
        return value
