"""Quantised weights: the matrices of the blocks as integers, in the format of compressed-tensors.

It is the format of llm-compressor (`pack-quantized`): `weight_packed` holds integers of 4 or 8 bits
in 32 bit words, `weight_scale` a scale for each group of inputs, or for each row. transformers
opens it where compressed-tensors is installed. Embeddings, head, norms, biases, and what is no
matrix of a block (replacements, branches, shortcuts, experts) stay as they are.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorap_exp.errors import LorapError
from lorap_exp.models.families import Block, blocks_of
from lorap_exp.models.headers import Stored, read_json
from lorap_exp.models.modeling_compressed import Projection, SplitLinear
from lorap_exp.ops.gptq import group_scales
from lorap_exp.workspace.extras import require

PACKAGE = "compressed-tensors"
FORMAT = "pack-quantized"
BITS = {"int8": 8, "int4": 4, "gptq": 4}
SCALE = "weight_scale"
"""Buffer of a layer whose weight was rounded already: it is not saved by itself."""


@dataclass(frozen=True)
class Packed:
    """What is saved of a quantised model.

    Attributes:
        state: its tensors by name, integers packed.
        settings: `quantization_config` of its configuration.
    """

    state: dict[str, Tensor]
    settings: dict[str, Any]


def check_quantisable(config: PreTrainedConfig, what: str) -> None:
    """Raise unless compressed-tensors is installed and the matrices are linear layers."""
    require(PACKAGE, what)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    if any(isinstance(module, Conv1D) for module in model.modules()):
        raise LorapError(
            f"{what} needs linear layers, got '{config.model_type}', which stores transposed ones"
        )


def quantisation_in(config: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    """How the weights of a folder are quantised, from its configuration; None where they are not.

    Raises:
        LorapError: they are in another format than this module reads.
    """
    found = [config.get(f"{name}_config") for name in ("quantization", "compression")]
    settings = next((entry for entry in found if entry is not None), None)
    if settings is None:
        return None
    known = settings if isinstance(settings, dict) else {"quant_method": settings}
    if known.get("format") != FORMAT or len(known.get("config_groups") or ()) != 1:
        raise LorapError(
            f"model.path must hold weights in floating point, got '{folder / 'config.json'}' with "
            f"weights quantised by {known.get('quant_method')!r}: use the checkpoint it was made "
            f"from"
        )
    return known


def opening(config: PreTrainedConfig, folder: Path) -> PreTrainedConfig:
    """The configuration with which transformers opens a folder: quantised weights as floats.

    Raises:
        LorapError: they are quantised, and compressed-tensors is not installed.
    """
    settings = quantisation_in(read_json(folder / "config.json"), folder)
    if settings is None:
        return config
    require(PACKAGE, f"'{folder}', whose weights are quantised,")
    config = copy.deepcopy(config)
    config.quantization_config = settings | {"dequantize": True}
    return config


def as_floats(model: Any) -> Any:
    """A model that was opened so, without the traces of its quantised files."""
    if hasattr(model.config, "quantization_config"):
        del model.hf_quantizer
    forget(model.config)
    return model


def forget(config: PreTrainedConfig) -> None:
    """Take away what a configuration says of quantised weights."""
    if hasattr(config, "quantization_config"):
        del config.quantization_config


def matrix_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers that hold the matrices of the blocks, by path; factors one by one."""
    paths = {id(module): path for path, module in model.named_modules()}
    layers = [layer for block in blocks_of(model) for layer in _of_block(block)]
    return {paths[id(layer)]: layer for layer in layers}


def _of_block(block: Block) -> list[nn.Linear]:
    found: dict[int, nn.Linear] = {}
    for name, path in block.family.matrices.items():
        owner = path.rpartition(".")[0]
        whole = block.module.get_submodule(owner) if owner in block.family.fused else None
        linear: Any = whole if isinstance(whole, nn.Linear) else block.linear(name)
        parts = linear.parts() if isinstance(linear, Projection) else [linear]
        found |= {id(part): part for part in parts}
    return list(found.values())


def known_scales(model: PreTrainedModel) -> dict[str, Tensor]:
    """The scales of layers that were rounded before, by path; of fused layers too."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, SplitLinear):
            parts = [getattr(module, name) for name in module.sizes]
            if all(hasattr(part, SCALE) for part in parts):
                found[path] = module.side_by_side([part.weight_scale for part in parts])
        elif isinstance(module, nn.Linear) and hasattr(module, SCALE):
            found[path] = module.weight_scale
    return found


@torch.no_grad()
def pack(model: PreTrainedModel, to: str, group_size: int, scales: Mapping[str, Tensor]) -> Packed:
    """Round the matrices of a model in place; what is saved of it.

    Args:
        model: in the form in which it is saved; its weights become what the integers stand for.
        to: int8 (a scale for each row), int4 or gptq (a scale for each group of inputs).
        group_size: inputs of a group; it divides the inputs of every layer.
        scales: of layers that were rounded already.
    """
    from compressed_tensors.compressors import PackedQuantizationCompressor  # noqa: PLC0415

    layers, scheme = matrix_layers(model), _scheme(to, group_size)
    state = dict(model.state_dict())
    for path, layer in layers.items():
        group = layer.in_features if to == "int8" else group_size
        scale = scales.get(path)
        scale = group_scales(layer.weight, BITS[to], group) if scale is None else scale
        exact = {"weight": layer.weight.float(), SCALE: scale.float()}
        stored = PackedQuantizationCompressor.compress(exact, scheme) | {SCALE: scale}
        layer.weight.copy_(PackedQuantizationCompressor.decompress(stored, scheme)["weight"])
        del state[f"{path}.weight"]
        state |= {f"{path}.{name}": tensor for name, tensor in stored.items()}
    return Packed(state, _settings(model, layers, scheme))


def _scheme(to: str, group_size: int) -> Any:
    from compressed_tensors.quantization import (  # noqa: PLC0415 (an extra)
        QuantizationArgs,
        QuantizationScheme,
    )

    groups: dict[str, Any] = {"strategy": "group", "group_size": group_size}
    if to == "int8":
        groups = {"strategy": "channel"}
    weights = QuantizationArgs(num_bits=BITS[to], type="int", symmetric=True, **groups)
    return QuantizationScheme(targets=["Linear"], weights=weights, format=FORMAT)


def _settings(
    model: PreTrainedModel, layers: Mapping[str, nn.Linear], scheme: Any
) -> dict[str, Any]:
    from compressed_tensors.quantization import (  # noqa: PLC0415 (an extra)
        QuantizationConfig,
        QuantizationStatus,
    )

    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        format=FORMAT,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=[path for path in linear if path not in layers],
    )
    found: dict[str, Any] = config.model_dump(mode="json")
    return found


def stored_bits(config: PreTrainedConfig) -> int | None:
    """Bits of a weight in the folder of a configuration; None where they are floats."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    return _bits(settings if isinstance(settings, dict) else settings.to_dict())


def _bits(settings: Mapping[str, Any]) -> int:
    (group,) = settings["config_groups"].values()
    return int(group["weights"]["num_bits"])


def as_written(
    folder: Path, stored: Mapping[str, Stored], wanted: Mapping[str, Any]
) -> dict[str, Stored]:
    """Stored tensors with each quantised weight as the one weight that it stands for.

    Args:
        folder: that holds them, and the configuration that says how many bits a weight has.
        stored: by name.
        wanted: shapes of the architecture by name.
    """
    settings = quantisation_in(read_json(folder / "config.json"), folder)
    if settings is None:
        return dict(stored)
    bits, found = _bits(settings), {}
    for name, tensor in stored.items():
        path, _, kind = name.rpartition(".")
        if kind == "weight_packed":
            outs, ins = wanted.get(f"{path}.weight", (0, 0))
            fits = tensor.shape == (outs, math.ceil(ins * bits / 32))
            shape = (outs, ins) if fits else tensor.shape
            found[f"{path}.weight"] = replace(tensor, dtype="BF16", shape=tuple(shape))
        elif f"{path}.weight_packed" not in stored or kind == "bias":
            found[name] = tensor
    return found
