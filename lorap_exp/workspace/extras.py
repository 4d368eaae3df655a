"""Packages that only some settings need, each behind an extra of the installation."""

from importlib.util import find_spec

from lorap_exp.errors import LorapError

EXTRAS = {
    "lm-eval": ("lm_eval", "eval"),
    "wandb": ("wandb", "wandb"),
    "peft": ("peft", "recovery"),
    "compressed-tensors": ("compressed_tensors", "quantise"),
}
"""Package -> its module, and the extra that brings it."""


def require(package: str, setting: str, otherwise: str = "") -> None:
    """Raise unless a package of `EXTRAS` is installed; nothing is imported.

    Args:
        package: its name in the registry.
        setting: what needs it, for the message.
        otherwise: a setting that does without it.

    Raises:
        LorapError: it is not installed.
    """
    module, extra = EXTRAS[package]
    if find_spec(module) is None:
        hint = f", or {otherwise}" if otherwise else ""
        raise LorapError(f"{setting} needs {package}: pip install 'lorap-exp[{extra}]'{hint}")
