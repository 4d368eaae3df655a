"""lorap_exp: low-rank and structured compression of decoder-only language models.

`lorap_exp.load(folder)` opens a saved model. Nothing heavy is imported before it is asked for.
"""

from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from lorap_exp.models.checkpoint import load  # noqa: PLC0415

        return load
    raise AttributeError(f"module 'lorap_exp' has no attribute '{name}'")
