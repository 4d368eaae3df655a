"""A compressed model made of a rewritten dense one, and its other forms: dense, stock.

What a method changed is said by *settings*, plain values: `stock` (fields of the stock
configuration), `compressed_modules`, `replaced_layers`, `original_layers`, `shortcuts`, `branches`
(see `modeling_compressed`).
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from lorap_exp.errors import LorapError
from lorap_exp.models import modeling_compressed
from lorap_exp.models.families import (
    check_branches,
    check_shortcuts,
    decoder_family,
    family_of,
)
from lorap_exp.models.modeling_compressed import (
    CompressedModel,
    Projection,
    SplitLinear,
    compressed_class,
    place,
    projections,
    reshape_linear,
    stock_models,
)
from lorap_exp.models.stock import OWN, fields_of, stock_settings, without_factors

PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")
"""Lists of stock configurations with one entry for each layer."""


def layer_settings(config: PreTrainedConfig, numbers: Sequence[int]) -> dict[str, Any]:
    """`stock` of a model in which layers `numbers` are left: their count, and lists by layer."""
    lists = {
        name: [value[number] for number in numbers]
        for name, value in fields_of(config).items()
        if name in PER_LAYER and value is not None
    }
    return lists | {"num_hidden_layers": len(numbers)}


def compressed_config(dense: PreTrainedConfig, settings: Mapping[str, Any]) -> PreTrainedConfig:
    """The compressed architecture's configuration: settings over the dense one.

    Raises:
        LorapError: the architecture cannot hold what the settings say.
    """
    unknown = sorted(set(settings) - {"stock", *OWN} | set(settings) & {"layout"})
    if unknown:
        raise LorapError(f"settings must be some of stock, {', '.join(OWN[:-1])}, got {unknown}")
    stock = stock_config(dense, settings.get("stock", {}))
    family = family_of(stock)
    if settings.get("shortcuts"):
        check_shortcuts(family)
    if settings.get("branches"):
        check_branches(family)
    config_class = compressed_class(type(dense))
    models = {auto: compressed_class(model) for auto, model in stock_models(type(dense)).items()}
    classes = {"AutoConfig": config_class} | models
    file = modeling_compressed.__name__.rpartition(".")[2]
    own = {key: value for key, value in settings.items() if key != "stock"}
    config = config_class(**fields_of(stock) | own, layout=family.layout())
    config.auto_map = {auto: f"{file}.{made.__name__}" for auto, made in classes.items()}
    return config


def stock_config(dense: PreTrainedConfig, fields: Mapping[str, Any]) -> PreTrainedConfig:
    """A configuration of the class of `dense` with some fields changed; lists follow layers."""
    names = {dense.attribute_map.get(key, key): value for key, value in fields.items()}
    return type(dense)(**fields_of(dense) | names)


def as_compressed(
    model: PreTrainedModel, settings: Mapping[str, Any], dense: PreTrainedConfig | None = None
) -> PreTrainedModel:
    """The same weights under the compressed architecture, without copying them.

    Args:
        model: rewritten to the forms that the settings say; `shorten` has removed its layers.
        settings: what was changed; nothing of a model that was compressed before.
        dense: configuration of the original model; that of `model` where it is still its own.

    Raises:
        RuntimeError: the weights' shapes are not those of the settings.
    """
    if isinstance(model, CompressedModel) and not any(settings.values()):
        return model
    config = compressed_config(dense or model.config, settings)
    return _rebuild(model, causal_class(config), config)


def causal_class(config: Any) -> Any:
    """The causal model class of a stock or a compressed configuration."""
    stock = getattr(config, "stock_class", None)
    if stock is None:
        return stock_models(type(config))["AutoModelForCausalLM"]
    return compressed_class(stock_models(stock)["AutoModelForCausalLM"])


def shorten(
    model: PreTrainedModel, keep: Sequence[int | nn.Module], settings: Mapping[str, Any]
) -> PreTrainedModel:
    """A dense model without some layers, as a compressed architecture; weights are shared.

    Args:
        model: dense.
        keep: what the list of layers then holds: layers by number, or a module in place of some.
        settings: what this changes: `stock` with `layer_settings`, `original_layers`,
            `replaced_layers`.
    """
    layers = model.get_submodule(decoder_family(model).layers)
    original = list(layers.children())
    kept = [original[item] if isinstance(item, int) else item for item in keep]
    try:
        _set_layers(layers, kept)
        return as_compressed(model, settings)
    finally:
        _set_layers(layers, original)


def _set_layers(container: nn.Module, layers: Sequence[nn.Module]) -> None:
    container._modules = {str(position): layer for position, layer in enumerate(layers)}


def export(model: PreTrainedModel, dense: PreTrainedConfig, form: str) -> PreTrainedModel:
    """The model in the form in which it is saved and scored.

    Args:
        model: compressed.
        dense: configuration of the dense model, or `stock_base` of a finished folder's.
        form: "factored" keeps the factors, "dense" multiplies them out (in float32). In either
            form, a model that a stock configuration describes becomes a stock architecture.
    """
    if form == "dense":
        for path, projection in projections(model).items():
            place(model, path, multiply_out(projection))
        model.config.compressed_modules = without_factors(model.config).compressed_modules
    stock = stock_form(model.config, dense)
    return model if stock is None else _rebuild(model, causal_class(stock), stock)


def stock_form(config: PreTrainedConfig, dense: PreTrainedConfig) -> PreTrainedConfig | None:
    """The stock configuration that describes a compressed model; None where none does."""
    found = stock_settings(config)
    if isinstance(found, str):
        return None
    changed = {k: v for k, v in fields_of(config).items() if k not in OWN}
    stock = type(dense)(**changed | found)
    if config.original_layers:
        stock.original_layers = config.original_layers
    return stock


@torch.no_grad()
def multiply_out(projection: Projection) -> nn.Linear:
    """A dense layer with the product of the factors, in float32 on the way."""
    linear: nn.Linear = reshape_linear(projection)
    linear.weight.copy_(projection.whole(torch.float32))
    if projection.bias is not None:
        linear.bias.copy_(projection.bias)
    return linear.requires_grad_(False)


@torch.no_grad()
def _rebuild(model: PreTrainedModel, model_class: Any, config: PreTrainedConfig) -> Any:
    """The weights and buffers of `model`, shared, in a new model of another class."""
    config._attn_implementation = model.config._attn_implementation
    with torch.device("meta"):
        rebuilt = model_class(config)
    stock = not isinstance(rebuilt, CompressedModel)
    rebuilt.load_state_dict(_state_for(rebuilt, model, stock=stock), assign=True)
    for path, buffer in model.named_buffers():
        owner, _, name = path.rpartition(".")
        try:
            buffers = rebuilt.get_submodule(owner)._buffers
        except AttributeError:  # of a layer that was there in another form
            continue
        if name in buffers:  # Gemma 3 has one for each kind of layer that is left
            buffers[name] = buffer
    rebuilt.tie_weights()
    rebuilt.generation_config = model.generation_config
    return rebuilt.eval().requires_grad_(False)


def as_form(
    rebuilt: nn.Module, layer: nn.Module, form: str, *, stock: bool
) -> dict[str, torch.Tensor]:
    """The weights of one layer in the form in which its model is saved: see `export`.

    Args:
        rebuilt: the layer of the saved architecture, without weights.
        layer: rewritten, with weights; not changed.
        form: factored or dense.
        stock: whether the saved architecture is a stock one.
    """
    if form == "dense" and projections(layer):
        layer = copy.deepcopy(layer)
        for path, projection in projections(layer).items():
            place(layer, path, multiply_out(projection))
    return _state_for(rebuilt, layer, stock=stock)


def _state_for(rebuilt: nn.Module, model: nn.Module, *, stock: bool) -> dict[str, torch.Tensor]:
    """Weights for a module of another class: fused, turned, or with the zero biases that it has."""
    state = model.state_dict()
    splits = {p: m for p, m in model.named_modules() if isinstance(m, SplitLinear)}
    for path, module in rebuilt.named_modules():
        split = splits.get(path)
        if split is not None and not isinstance(module, SplitLinear):
            joined = split.join().state_dict()
            state = {k: v for k, v in state.items() if not k.startswith(path + ".")}
            state |= {f"{path}.{key}": value for key, value in joined.items()}
        if isinstance(module, Conv1D):
            state[f"{path}.weight"] = state[f"{path}.weight"].mT.contiguous()
        if stock and isinstance(module, nn.Linear) and module.bias is not None:
            weight = state[f"{path}.weight"]
            state.setdefault(f"{path}.bias", weight.new_zeros(len(weight)))
    return state
