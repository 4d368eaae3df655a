"""Whether a stock configuration describes a compressed model, decided from its configuration.

A stock architecture opens in every tool; anything else needs the modelling file beside the weights.
"""

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from lorap_exp.models.families import blocks_of, meta_model
from lorap_exp.models.structure import ATTENTION, MLP

OWN = (
    "compressed_modules",
    "replaced_layers",
    "original_layers",
    "shortcuts",
    "branches",
    "layout",
)
"""What a compressed configuration has beside the stock one's settings."""
WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
SIZES = ("out_features", "in_features", "bias")
"""What a dense matrix may have of a projection's form."""
BIASES = {"attention": ("attention_bias", "bias"), "mlp": ("mlp_bias", "bias")}
Forms = dict[str, dict[str, Any]]
"""Matrix of a layer -> what `compressed_modules` says of it."""
NOT_SETTINGS = ("model_type", "architectures", "transformers_version", "auto_map")


def fields_of(config: PreTrainedConfig) -> dict[str, Any]:
    """Everything that a configuration says, to make another one of."""
    return {key: value for key, value in config.to_dict().items() if key not in NOT_SETTINGS}


def stock_base(config: PreTrainedConfig) -> PreTrainedConfig:
    """The stock configuration under a compressed one; a stock one as it is."""
    stock_class = getattr(config, "stock_class", None)
    if stock_class is None:
        return config
    settings = {k: v for k, v in fields_of(config).items() if k not in OWN}
    return stock_class(**settings)


def without_factors(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of a compressed model after its factors are multiplied out."""
    forms: dict[str, dict[str, Any]] = getattr(config, "compressed_modules", None) or {}
    dense = {p: {k: v for k, v in form.items() if k in SIZES} for p, form in forms.items()}
    changed = copy.deepcopy(config)
    changed.compressed_modules = {path: form for path, form in dense.items() if form}
    return changed


class NotStockError(Exception):
    """No stock configuration describes the model; the message says why."""


def stock_settings(config: PreTrainedConfig) -> dict[str, Any] | str:
    """Fields of the stock configuration that describe a compressed model, or why none do.

    Every layer must be a decoder layer of the architecture, of one form, and without factors.
    """
    if getattr(config, "stock_class", None) is None:
        return {}
    try:
        _check_parts(config)
        forms = _by_layer(config)
        found = _bias_fields(config, forms) | _width_field(config, forms)
        found |= _head_fields(config, forms)
        _compare(config, found)
    except NotStockError as reason:
        return str(reason)
    return found


def _check_parts(config: Any) -> None:
    """Raise when layers hold what no stock layer does."""
    if config.replaced_layers:
        count = len(config.replaced_layers)
        raise NotStockError(f"{count} of its layers are replaced by another network")
    if config.shortcuts:
        raise NotStockError("its layers map the residual by shortcuts")
    if config.branches:
        raise NotStockError(f"{len(config.branches)} of its MLPs have a branch")
    forms = (config.compressed_modules or {}).values()
    factored = sum("rank" in form for form in forms)
    if factored:
        raise NotStockError(f"{factored} of its projections are factors")
    narrow = sum("scatter" in form or "gather" in form for form in forms)
    if narrow:
        raise NotStockError(f"{narrow} of its projections hold some rows or columns only")


def _bias_fields(config: Any, forms: Forms) -> dict[str, Any]:
    found = {}
    for group, names in (("attention", ATTENTION), ("mlp", MLP)):
        if any("bias" in form for name, form in forms.items() if name in names):
            field = next((f for f in BIASES[group] if hasattr(config, f)), None)
            if field is None:
                raise NotStockError(f"{_name(config)} has no setting for biases in its {group}")
            found[field] = True
    return found


def _width_field(config: Any, forms: Forms) -> dict[str, Any]:
    """The field that holds the width of the MLP; null stands for four times the hidden size."""
    if "out_features" not in forms.get("up", {}):
        return {}
    dense = blocks_of(meta_model(stock_base(config)))[0].linear("up").out_features
    field = next((f for f in WIDTHS if getattr(config, f, 0) in (dense, None)), None)
    if field is None:
        raise NotStockError(f"{_name(config)} has no setting for the width of its MLP")
    return {field: forms["up"]["out_features"]}


def _head_fields(config: Any, forms: Forms) -> dict[str, Any]:
    if "out_features" not in forms.get("k", {}):
        return {}
    head = getattr(config, "head_dim", None)
    if head is None:
        raise NotStockError(f"{_name(config)} has no setting for the size of a head")
    groups = forms["k"]["out_features"] // head
    ratio = config.num_attention_heads // config.num_key_value_heads
    return {"num_attention_heads": ratio * groups, "num_key_value_heads": groups}


def _name(config: Any) -> str:
    return str(config.stock_class.__name__)


def _by_layer(config: Any) -> Forms:
    """The forms of a layer's matrices, the same in each."""
    changed: Mapping[str, dict[str, Any]] = config.compressed_modules or {}
    layout = config.layout
    layers = [
        {
            name: changed[path]
            for name, inside in layout["matrices"].items()
            if (path := f"{layout['layers']}.{position}.{inside}") in changed
        }
        for position in range(config.num_hidden_layers)
    ]
    if any(layer != layers[0] for layer in layers):
        raise NotStockError("its layers have different sizes")
    return layers[0]


def _compare(config: Any, found: dict[str, Any]) -> None:
    """Raise unless the stock model with these fields has the shapes of the compressed one."""
    wanted = blocks_of(meta_model(config))
    try:
        stock = meta_model(config.stock_class(**fields_of(stock_base(config)) | found))
    except ValueError as error:
        raise NotStockError(
            f"{_name(config)} refuses its sizes: {' '.join(str(error).split())}"
        ) from error
    for mine, theirs in zip(wanted, blocks_of(stock), strict=True):
        for name in mine.family.matrices:
            one, other = mine.linear(name), theirs.linear(name)
            if not _same(one, other):
                raise NotStockError(f"no {_name(config)} has its sizes of {name}")


def _same(one: nn.Linear, other: nn.Linear) -> bool:
    """The same sizes, and a bias where there is one to keep."""
    same = (one.in_features, one.out_features) == (other.in_features, other.out_features)
    return same and (one.bias is None or other.bias is not None)
