"""Methods by name, for a configuration that chooses among several of them."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from lorap_exp.commands.catalogue import conf_folder

USUAL = 0.2
"""The ratio where nothing is said of the size."""


def ratio_unless(*targets: Any) -> float | None:
    """The default ratio; None where a target is set, from which it is found."""
    return USUAL if all(target is None for target in targets) else None


def methods(names: Sequence[str], seed: int) -> dict[str, Any]:
    """The settings of each method, None for a name that is no option of `method`."""
    within: Any = nullcontext()
    if not GlobalHydra.instance().is_initialized():
        within = hydra.initialize_config_dir(str(conf_folder()), version_base="1.3")
    with within:
        options = GlobalHydra.instance().config_loader().get_group_options("method")
        return {name: _method(name, seed) if name in options else None for name in names}


def _method(name: str, seed: int) -> Any:
    composed = hydra.compose("config", [f"method={name}", f"seed={seed}"])
    return OmegaConf.to_container(composed.method, resolve=True)
