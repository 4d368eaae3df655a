"""A compressed model as a folder: saved so that it loads anywhere, loaded back, checked.

A checkpoint is safetensors, a configuration with the settings of `models.forms`, the modelling file
and the tokenizer. No pickle.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lorap_exp.errors import LorapError
from lorap_exp.models import modeling_compressed
from lorap_exp.models.headers import read_json
from lorap_exp.models.inspection import check_complete
from lorap_exp.models.portable import make_portable
from lorap_exp.models.quantised import Packed, as_floats, forget, opening


def load(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = "auto",
) -> PreTrainedModel:
    """A saved model in evaluation mode. The tokenizer lies in the same folder.

    Raises:
        LorapError: the folder holds no checkpoint.
    """
    kind, config = class_in(Path(folder)), opening(load_config(Path(folder)), Path(folder))
    with torch.device("meta"):
        whole = kind is AutoModelForCausalLM
        check_complete(Path(folder), kind.from_config(config) if whole else kind(config))
    model = as_floats(kind.from_pretrained(str(folder), config=config, dtype=dtype))
    return model.eval().requires_grad_(False).to(device)


def rotary(config: PreTrainedConfig) -> dict[str, Any]:
    """How a configuration says its rotary positions, without the older name of their type."""
    found = getattr(config, "rope_parameters", None) or {}
    return {key: value for key, value in found.items() if key != "type"}


def class_in(folder: Path) -> Any:
    """The class that opens a saved model; an automatic one where it is stock.

    Raises:
        LorapError: the folder holds no checkpoint.
    """
    if not (folder / "config.json").is_file():
        raise LorapError(f"a saved model's folder holds config.json, got '{folder}'")
    settings = read_json(folder / "config.json")
    kind = settings.get("model_type")
    if not isinstance(kind, str):
        raise LorapError(
            f"a saved model's folder holds a config.json with a model_type, got '{folder}' without "
            f"one: a job's own folder keeps it in 'model', unless keep_model=false removed it"
        )
    if not kind.startswith("compressed_"):
        return AutoModelForCausalLM
    names = settings.get("architectures")
    if not isinstance(names, list) or not names:
        raise LorapError(f"'{folder / 'config.json'}' must say its architectures, got {names}")
    return getattr(modeling_compressed, str(names[0]))


def load_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a saved model, stock or compressed.

    Raises:
        LorapError: the folder holds no checkpoint.
    """
    found = class_in(folder)
    kind = AutoConfig if found is AutoModelForCausalLM else found.config_class
    config: PreTrainedConfig = kind.from_pretrained(str(folder))
    return config


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: Callable[[Path], None] | None = None,
    packed: Packed | None = None,
) -> None:
    """Write model and tokenizer to `folder`: complete or, when interrupted, not at all.

    `weights` writes the weights of a model that has none in memory; `packed` are its quantised
    ones.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    if packed is not None:
        model.config.quantization_config = packed.settings
    state = packed.state if packed is not None else None if weights is None else {}
    model.save_pretrained(partial, state_dict=state)
    forget(model.config)
    if weights is not None:
        weights(partial)
    tokenizer.save_pretrained(partial)
    make_portable(partial)
    saved, own = rotary(load_config(partial)), rotary(model.config)
    if saved != own:
        raise LorapError(
            f"config.json in '{partial}' must say the model's rotary positions, got {saved}"
        )
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


@torch.no_grad()
def check_reload(model: PreTrainedModel, folder: Path, ids: torch.Tensor) -> None:
    """Raise unless the saved model gives the logits of the model in memory on a batch of ids.

    The model waits on the CPU meanwhile, so that a GPU never holds two.
    """
    device, dtype = model.device, model.dtype
    expected = model(ids.to(device)).logits.float().cpu()
    model.to(torch.device("cpu"))  # type: ignore[arg-type]
    got = load(folder, device, dtype)(ids.to(device)).logits.float().cpu()
    model.to(device)  # type: ignore[arg-type]
    check_same(expected, got, folder)


def check_same(expected: torch.Tensor, got: torch.Tensor, folder: Path) -> None:
    """Raise unless the logits of a saved model are those of the model that was saved."""
    if torch.equal(expected, got):
        return
    difference = (expected - got).norm() / expected.norm()
    if not difference <= 1e-5:
        raise LorapError(
            f"the checkpoint in '{folder}' must reproduce the model in memory, but its logits "
            f"differ by {difference:.2g} (relative norm)"
        )
