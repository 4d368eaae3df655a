"""The job after this one, where a sweep runs its jobs one after the other in one process."""

import sys
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from lorap_exp.config import Config, validate
from lorap_exp.errors import LorapError

SERIAL = ("BasicSweeper", "BasicLauncher")


def next_job(hydra_cfg: Any) -> Config | None:
    """The checked configuration of the next job of a sweep; None where there is none to be known.

    A wrong configuration is None too: the next job itself says what is wrong.
    """
    serial = all(
        str(part._target_).endswith(name)
        for part, name in zip((hydra_cfg.sweeper, hydra_cfg.launcher), SERIAL, strict=True)
    )
    if hydra_cfg.mode != RunMode.MULTIRUN or not serial:
        return None
    words = jobs_of(sys.argv[1:], hydra_cfg.sweeper.get("params") or {})
    number = int(hydra_cfg.job.num) + 1
    if number >= len(words):
        return None
    composed: Any = OmegaConf.to_container(hydra.compose("config", words[number]), resolve=True)
    try:
        return validate(composed)
    except LorapError:
        return None


def jobs_of(typed: list[str], params: Any) -> list[list[str]]:
    """The overrides of each job of a sweep, in order, as Hydra's basic sweeper makes them."""
    words = [word for word in typed if not word.startswith("-")]
    given = {word.partition("=")[0].lstrip("+~") for word in words}
    words += [f"{key}={value}" for key, value in params.items() if key not in given]
    words = [word for word in words if not word.lstrip("+~").startswith("hydra")]
    parsed = OverridesParser.create().parse_overrides(words)
    return [list(job) for job in BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]]
