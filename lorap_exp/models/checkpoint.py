"""Saving a compressed model so that it loads anywhere, and loading it back.

A checkpoint is safetensors, a configuration that lists the changed shapes, the modelling file and
the tokenizer. `AutoModelForCausalLM` opens it after `import lorap_exp`, or anywhere with
`trust_remote_code=True`. No pickle.
"""

import shutil
from pathlib import Path

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
from lorap_exp.models.families import Family, family_of, module_shapes, shapes_of
from lorap_exp.models.loading import meta_model
from lorap_exp.models.modeling_compressed import COMPRESSED
from lorap_exp.planning.plan import Plan


def register() -> None:
    """Teach transformers' Auto classes the compressed architectures."""
    for family, (config, model) in COMPRESSED.items():
        AutoConfig.register(f"compressed_{family}", config, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)


def compressed_config(config: PreTrainedConfig, plan: Plan) -> PreTrainedConfig:
    """The configuration of the compressed model: the dense one and the shapes of the plan."""
    family = family_of(config.model_type)
    shapes = shapes_of(meta_model(config))
    settings = config.to_dict()
    for key in ("model_type", "architectures", "transformers_version"):
        settings.pop(key, None)
    return COMPRESSED[config.model_type][0](
        **settings, compressed_modules=module_shapes(plan, shapes, family)
    )


def as_compressed(model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """The same weights under the compressed architecture, without copying them.

    Raises:
        RuntimeError: the weights' shapes are not those of the plan.
    """
    config = compressed_config(model.config, plan)
    config._attn_implementation = model.config._attn_implementation
    with torch.device("meta"):
        compressed = COMPRESSED[model.config.model_type][1](config)
    compressed.load_state_dict(model.state_dict(), assign=True)
    for path, buffer in model.named_buffers():
        owner, _, name = path.rpartition(".")
        compressed.get_submodule(owner)._buffers[name] = buffer
    compressed.tie_weights()
    compressed.generation_config = model.generation_config
    return compressed.eval().requires_grad_(False)


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
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype)
    return model.eval().requires_grad_(False).to(device)


@torch.inference_mode()
def check_reload(model: PreTrainedModel, folder: Path, ids: torch.Tensor) -> None:
    """Raise unless the saved model gives the logits of the model in memory on a batch of ids."""
    reloaded = load(folder, model.device, model.dtype)
    expected, got = model(ids.to(model.device)).logits, reloaded(ids.to(model.device)).logits
    difference = (expected.float() - got.float()).norm() / expected.float().norm()
    if not difference <= 1e-5:
        raise LorapError(
            f"the checkpoint in '{folder}' must reproduce the model in memory, but its logits "
            f"differ by {difference:.2g} (relative norm)"
        )


def decoder_family(model: PreTrainedModel) -> Family:
    """The family of a dense or a compressed model."""
    return family_of(model.config.model_type.removeprefix("compressed_"))


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    """Parameters counted from the model: attention, mlp, other (norms), embeddings, total.

    A tied output head is the embedding and is counted once.
    """
    family = decoder_family(model)
    layers = model.get_submodule(family.layers)
    counts = {"attention": 0, "mlp": 0, "other": 0, "embeddings": 0}
    for layer in layers.children():
        for name, parameter in layer.named_parameters():
            inside = [n for n, path in family.matrices.items() if name.startswith(path + ".")]
            part = (
                "other"
                if not inside
                else "mlp"
                if inside[0] in ("gate", "up", "down")
                else "attention"
            )
            counts[part] += parameter.numel()
    total = sum(parameter.numel() for parameter in model.parameters())
    blocks = sum(counts.values())
    ends = _unique(model.get_input_embeddings(), model.get_output_embeddings())
    counts["embeddings"] = sum(parameter.numel() for parameter in ends)
    counts["other"] = total - blocks - counts["embeddings"] + counts["other"]
    return counts | {"decoder": counts["attention"] + counts["mlp"], "total": total}


def _unique(*modules: nn.Module | None) -> list[nn.Parameter]:
    found: dict[int, nn.Parameter] = {}
    for module in modules:
        for parameter in module.parameters() if module is not None else ():
            found[id(parameter)] = parameter
    return list(found.values())
