"""Saving a compressed model so that it loads anywhere, and loading it back.

A checkpoint is safetensors, a configuration that lists the changed shapes, the modelling file and
the tokenizer. `AutoModelForCausalLM` opens it after `import lorap_exp`, or anywhere with
`trust_remote_code=True`. No pickle.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lorap_exp.errors import LorapError
from lorap_exp.models.families import (
    Family,
    decoder_family,
    family_of,
)
from lorap_exp.models.inspection import check_complete
from lorap_exp.models.loading import meta_model
from lorap_exp.models.modeling_compressed import (
    COMPRESSED,
    LowRankLinear,
    join_fused,
    reshape_linear,
)

DECODER = ("attention", "mlp", "replacement")
"""The parts whose parameters a ratio counts."""


def register() -> None:
    """Teach transformers' Auto classes the compressed architectures."""
    for family, (config, model) in COMPRESSED.items():
        AutoConfig.register(f"compressed_{family}", config, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)


def as_compressed(
    model: PreTrainedModel, settings: Mapping[str, Any], dense: PreTrainedConfig
) -> PreTrainedModel:
    """The same weights under the compressed architecture, without copying them.

    Raises:
        RuntimeError: the weights' shapes are not those of the settings.
    """
    _, model_class = COMPRESSED[dense.model_type]
    return _rebuild(model, model_class, compressed_config(dense, settings))


def shorten(
    model: PreTrainedModel, keep: Sequence[int | nn.Module], settings: Mapping[str, Any]
) -> PreTrainedModel:
    """A dense model with other layers, as a compressed architecture; weights are shared."""
    family = family_of(model.config.model_type)
    layers = model.get_submodule(family.layers)
    original = list(layers.children())
    kept = [original[layer] if isinstance(layer, int) else layer for layer in keep]
    try:
        _set_layers(layers, kept)
        return as_compressed(model, settings, model.config)
    finally:
        _set_layers(layers, original)


def _set_layers(container: nn.Module, layers: Sequence[nn.Module]) -> None:
    container._modules = {str(position): layer for position, layer in enumerate(layers)}


def compressed_config(dense: PreTrainedConfig, settings: Mapping[str, Any]) -> PreTrainedConfig:
    """The compressed architecture's configuration."""
    config_class, _ = COMPRESSED[dense.model_type]
    own = {key: value for key, value in settings.items() if key != "stock"}
    return config_class(**_settings(dense) | settings.get("stock", {}) | own)


def export(model: PreTrainedModel, dense: PreTrainedConfig, form: str) -> Any:
    """The model in the form in which it is saved and scored."""
    if form == "dense":
        modules = {path: dict(shape) for path, shape in model.config.compressed_modules.items()}
        for path, module in list(model.named_modules()):
            if isinstance(module, LowRankLinear):
                model.set_submodule(path, multiply_out(module))
                modules[path].pop("rank")
        model.config.compressed_modules = {path: s for path, s in modules.items() if s}
    changes = stock_settings(model.config)
    if changes is None:
        return model
    stock = type(dense)(**_settings(dense) | changes)
    return _rebuild(join_fused(model), type(meta_model(stock)), stock)


def stock_settings(config: PreTrainedConfig) -> dict[str, Any] | None:
    """Settings of the stock configuration; None when nothing stock describes the model."""
    if config.replaced_layers:
        return None
    changes: dict[str, Any] = {"num_hidden_layers": config.num_hidden_layers}
    if config.original_layers is not None:
        changes["original_layers"] = config.original_layers
    if getattr(config, "layer_types", None):
        changes["layer_types"] = config.layer_types
    modules = config.compressed_modules or {}
    widths = set()
    for path, shape in modules.items():
        if set(shape) - {"out_features", "in_features"} or ".self_attn." in path:
            return None
        if set(shape) == {"in_features"}:
            widths.add(shape["in_features"])
    if modules:
        if len(widths) > 1 or len(modules) % config.num_hidden_layers:
            return None
        width = "ffn_dim" if config.model_type.endswith("opt") else "intermediate_size"
        changes[width] = widths.pop()
    return changes


@torch.no_grad()
def multiply_out(module: LowRankLinear) -> nn.Linear:
    """A dense layer with the product of the factors."""
    linear = reshape_linear(module.left, in_features=module.in_features)
    linear.weight.copy_(module.left.weight.float() @ module.right.weight.float())
    if module.bias is not None:
        linear.bias.copy_(module.bias)
    return linear.requires_grad_(False)


def _settings(config: PreTrainedConfig) -> dict[str, Any]:
    settings = config.to_dict()
    for key in ("model_type", "architectures", "transformers_version"):
        settings.pop(key, None)
    return settings


def _rebuild(model: PreTrainedModel, model_class: Any, config: PreTrainedConfig) -> Any:
    """The weights and buffers of `model`, shared, in a new model of another class."""
    config._attn_implementation = model.config._attn_implementation
    with torch.device("meta"):
        rebuilt = model_class(config)
    rebuilt.load_state_dict(model.state_dict(), assign=True)
    for path, buffer in model.named_buffers():
        owner, _, name = path.rpartition(".")
        buffers = rebuilt.get_submodule(owner)._buffers
        if name in buffers:  # Gemma 3 has one for each kind of layer that is left
            buffers[name] = buffer
    rebuilt.tie_weights()
    rebuilt.generation_config = model.generation_config
    return rebuilt.eval().requires_grad_(False)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write model and tokenizer to `folder`: complete or, when interrupted, not at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def load(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = "auto",
) -> PreTrainedModel:
    """A saved compressed model in evaluation mode. The tokenizer lies in the same folder.

    Raises:
        LorapError: the folder holds no checkpoint.
    """
    register()
    if not (Path(folder) / "config.json").is_file():
        raise LorapError(f"a compressed model's folder holds config.json, got '{folder}'")
    config = AutoConfig.from_pretrained(str(folder))
    with torch.device("meta"):
        check_complete(Path(folder), AutoModelForCausalLM.from_config(config))
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype)
    return model.eval().requires_grad_(False).to(device)


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
    difference = (expected - got).norm() / expected.norm()
    if not difference <= 1e-5:
        raise LorapError(
            f"the checkpoint in '{folder}' must reproduce the model in memory, but its logits "
            f"differ by {difference:.2g} (relative norm)"
        )


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    """Parameters counted from the model by part, with decoder and total.

    decoder is attention, mlp and what replaces removed layers. A tied output head is the embedding
    and is counted once.
    """
    family = decoder_family(model)
    counts = {"attention": 0, "mlp": 0, "replacement": 0, "other": 0, "embeddings": 0}
    for name, parameter in model.named_parameters():
        counts[part_of(name, family)] += parameter.numel()
    decoder = sum(counts[part] for part in DECODER)
    return counts | {"decoder": decoder, "total": sum(counts.values())}


def part_of(name: str, family: Family) -> str:
    """A parameter's part: attention, mlp, replacement, embeddings (with the head) or other."""
    inside = name.removeprefix(family.layers + ".").partition(".")[2]
    if name.startswith(family.layers + "."):
        for matrix, path in family.matrices.items():
            fused = path.rpartition(".")[0]  # Phi-3's, once they are joined again
            if inside.startswith((f"{path}.", f"{fused}.weight", f"{fused}.bias")):
                return "mlp" if matrix in ("gate", "up", "down") else "attention"
        return "replacement" if inside.startswith("replacement.") else "other"
    return "embeddings" if "embed_tokens." in name or name.startswith("lm_head.") else "other"
