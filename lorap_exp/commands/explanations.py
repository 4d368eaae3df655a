"""One sentence for what Hydra could not make of a command line."""

import difflib
import re
import sys
from typing import Any

import hydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lorap_exp.commands.catalogue import conf_folder, options_of
from lorap_exp.commands.failures import sentence
from lorap_exp.errors import first_line, one_line

EXTRAS = {"joblib": "joblib", "submitit": "slurm", "ray": "ray", "optuna": "optuna"}
"""The extra that brings each plugin of Hydra."""


def explain(error: Exception) -> str | None:
    """One sentence for what a user or the machine did wrong; None for any other error."""
    if '"srun"' in str(error):
        return "hydra/launcher=slurm must start where srun is; slurm_local works anywhere"
    composed = _not_composed(error) if isinstance(error, HydraException) else None
    return composed or _unresolved(error) or sentence(error) or _of_hydra(error)


def _unresolved(error: Exception) -> str | None:
    """What was typed that leaves a setting without its value."""
    typed = [a for a in sys.argv[1:] if "${" in a or a.startswith("~")]
    if not typed or not isinstance(error, OmegaConfBaseException):
        return None
    return f"'{typed[0]}' leaves a setting without a value: {first_line(error)}"


def _of_hydra(error: Exception) -> str | None:
    return one_line(error) if isinstance(error, HydraException) else None


def _not_composed(error: HydraException) -> str | None:
    """What a configuration that Hydra cannot compose lacks."""
    if isinstance(error, MissingConfigException):
        return _no_option(error)
    text = str(error)
    if found := re.search(r"Error merging override ([^=]+)=(.*)", text):
        return f"{found[1].lstrip('+')} must be of the kind that it has in conf/, got '{found[2]}'"
    if found := re.search(r"Ambiguous value for argument '([^=]+)=([^']*)'", text):
        return f"{found[1]} must have one value without -m (a sweep), got '{found[2]}'"
    if isinstance(error, ConfigCompositionException) and (
        found := re.search(r"Could not (?:override|append) '([^']+)'", text)
    ):
        return unknown_key(found[1])
    return None


def _no_option(error: MissingConfigException) -> str:
    """A group without the option that was asked for."""
    if not (error.missing_cfg_file and error.options):
        return one_line(error)
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    if group.startswith("hydra/") and (extra := EXTRAS.get(name.partition("_")[0])):
        return f"{group}={name} needs an extra: pip install 'lorap-exp[{extra}]'"
    allowed = options_of(group) or list(error.options)
    return f"{group} must be one of {', '.join(allowed)}, got '{name}'"


def unknown_key(key: str) -> str:
    """Name the misspelled key, the nearest ones and the settings of its level."""
    groups = [a for a in sys.argv[1:] if re.fullmatch(r"[a-z]+=[\w/]+", a)]
    chosen = [a for a in groups if (conf_folder() / f"{a.replace('=', '/')}.yaml").is_file()]
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed = hydra.compose("config", [a for a in chosen if "experiment=" not in a])
    known = sorted(_keys(OmegaConf.to_container(composed, resolve=False)))
    level = key.rpartition(".")[0]
    while level and not any(k.startswith(f"{level}.") for k in known):
        level = level.rpartition(".")[0]
    beside = [k for k in known if k.rpartition(".")[0] == level]
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"'{key}' is not a setting; {hint}allowed here: {', '.join(beside)}"


def _keys(node: Any, prefix: str = "") -> list[str]:
    found = []
    for name, value in node.items():
        key = f"{prefix}{name}"
        found += [key, *(_keys(value, key + ".") if isinstance(value, dict) else [])]
    return found
