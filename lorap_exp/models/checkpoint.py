"""Saving a compressed model so that it loads anywhere, and loading it back.

A checkpoint is safetensors, a configuration that lists the changed shapes, the modelling file and
the tokenizer. `AutoModelForCausalLM` opens it after `import lorap_exp`, or anywhere with
`trust_remote_code=True`. No pickle.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
    module_shapes,
    shapes_of,
)
from lorap_exp.models.inspection import check_complete
from lorap_exp.models.loading import meta_model
from lorap_exp.models.modeling_compressed import (
    COMPRESSED,
    LowRankLinear,
    join_fused,
    reshape_linear,
)
from lorap_exp.planning.plan import BlockPlan, Plan, Removal

DECODER = ("attention", "mlp", "replacement")
PER_LAYER = ("layer_types",)
"""Lists of stock configurations with one entry for each layer."""
"""The parts whose parameters a ratio counts."""


def register() -> None:
    """Teach transformers' Auto classes the compressed architectures."""
    for family, (config, model) in COMPRESSED.items():
        AutoConfig.register(f"compressed_{family}", config, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)


def as_compressed(
    model: PreTrainedModel, plan: Plan, dense: PreTrainedConfig | None = None
) -> PreTrainedModel:
    """The same weights under the compressed architecture, without copying them.

    Args:
        model: rewritten to the sizes of the plan; `shorten` has removed its layers, if any.
        plan: as carried out.
        dense: configuration of the original model; that of `model` where it is still its own.

    Raises:
        RuntimeError: the weights' shapes are not those of the plan.
    """
    dense = dense or model.config
    _, model_class = COMPRESSED[dense.model_type]
    return _rebuild(model, model_class, planned_config(dense, plan))


def shorten(
    model: PreTrainedModel, removal: Removal, replacements: Mapping[int, nn.Module]
) -> PreTrainedModel:
    """A dense model without the removed layers, as a compressed architecture; weights are shared.

    Args:
        model: dense.
        removal: which layers go, and what stands in their place.
        replacements: the module of each replacement, by its start.
    """
    family = family_of(model.config.model_type)
    blocks = removal.remaining(shapes_of(model))
    plan = Plan(0.0, tuple(BlockPlan(block.index) for block in blocks), removal)
    _, model_class = COMPRESSED[model.config.model_type]
    layers = model.get_submodule(family.layers)
    kept = [
        replacements.get(block.index, layers.get_submodule(str(block.index))) for block in blocks
    ]
    original = list(layers.children())
    try:
        _set_layers(layers, kept)
        return _rebuild(model, model_class, planned_config(model.config, plan))
    finally:
        _set_layers(layers, original)


def _set_layers(container: nn.Module, layers: Sequence[nn.Module]) -> None:
    container._modules = {str(position): layer for position, layer in enumerate(layers)}


def planned_config(dense: PreTrainedConfig, plan: Plan) -> PreTrainedConfig:
    """The compressed architecture's configuration: plan and dense configuration say it all."""
    config_class, _ = COMPRESSED[dense.model_type]
    settings = _settings(dense) | {"compressed_modules": planned_shapes(dense, plan)}
    return config_class(**settings | _layer_settings(dense, plan))


def _layer_settings(dense: PreTrainedConfig, plan: Plan) -> dict[str, Any]:
    """What removing layers changes in a configuration: their number, and lists by layer."""
    if not plan.removal.layers:
        return {}
    numbers = [block.index for block in plan.blocks]
    lists = {
        name: [value[number] for number in numbers]
        for name, value in _settings(dense).items()
        if name in PER_LAYER and value is not None
    }
    replaced = plan.removal.by_start
    modules = {
        str(position): {"kind": replaced[number].kind, "residual": replaced[number].residual}
        for position, number in enumerate(numbers)
        if number in replaced and not replaced[number].is_block
    }
    settings = {"num_hidden_layers": len(numbers), "original_layers": numbers}
    return lists | settings | ({"replaced_layers": modules} if modules else {})


def planned_shapes(dense: PreTrainedConfig, plan: Plan) -> dict[str, dict[str, int]]:
    """`compressed_modules` of a plan over the dense configuration."""
    return module_shapes(plan, shapes_of(meta_model(dense)), family_of(dense.model_type))


def export(model: PreTrainedModel, dense: PreTrainedConfig, plan: Plan, form: str) -> Any:
    """The model in the form in which it is saved and scored.

    Args:
        model: from `as_compressed`.
        dense: configuration of the dense model.
        plan: as carried out.
        form: "factored" keeps the factors, "dense" multiplies them out (in float32). In either
            form, a model that a stock configuration describes becomes a stock architecture.
    """
    if form == "dense":
        plan = replace(plan, blocks=tuple(replace(block, ranks={}) for block in plan.blocks))
        for path, module in list(model.named_modules()):
            if isinstance(module, LowRankLinear):
                model.set_submodule(path, multiply_out(module))
        model.config.compressed_modules = planned_shapes(dense, plan)
    changes = stock_changes(dense, plan)
    if changes is None:
        return model
    stock = type(dense)(**_settings(dense) | changes)
    return _rebuild(join_fused(model), type(meta_model(stock)), stock)


def stock_changes(dense: PreTrainedConfig, plan: Plan) -> dict[str, Any] | None:
    """Settings of the stock configuration that describe a plan; None when nothing stock does.

    Every layer must be a decoder layer of the family, with the same widths and no factors.
    """
    shapes = {(tuple(block.ranks), tuple(block.widths.items())) for block in plan.blocks}
    if len(shapes) > 1 or not all(r.is_block for r in plan.removal.replacements):
        return None
    ranks, widths = shapes.pop()
    sizes, changes = dict(widths), _layer_settings(dense, plan)
    if ranks:
        return None
    if "mlp" in sizes:
        width = "ffn_dim" if dense.model_type == "opt" else "intermediate_size"
        changes[width] = sizes["mlp"]
    if "heads" in sizes:
        heads = dense.num_attention_heads // dense.num_key_value_heads * sizes["heads"]
        if dense.hidden_size % heads or getattr(dense, "head_dim", None) is None:
            return None
        changes |= {"num_attention_heads": heads, "num_key_value_heads": sizes["heads"]}
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
