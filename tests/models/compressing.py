"""A random model of a family, rewritten as a method would: for tests of the modelling side."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lorap_exp.models.families import blocks_of, decoder_family
from lorap_exp.models.modeling_compressed import reshape_linear

IDS = torch.arange(1, 33).view(2, 16)
RESIDUAL = ("o", "down")


@torch.no_grad()
def fill(layer: Any) -> Any:
    """Random weights of a size that keeps activations in range."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.05)
    return layer.requires_grad_(False)


@torch.no_grad()
def rewrite(model: PreTrainedModel, kept: float = 0.7) -> dict[str, Any]:
    """Factors in attention and narrow MLPs at a share of their parameters, in place; settings."""
    family, modules = decoder_family(model), {}
    for block in blocks_of(model):
        for name in block.family.matrices:
            linear = block.linear(name)
            outs, ins = linear.out_features, linear.in_features
            if name in ("q", "k", "v", "o"):
                form = {"rank": int(kept * outs * ins / (outs + ins))}
            elif name == "down":
                form = {"in_features": int(kept * ins)}
            else:
                form = {"out_features": int(kept * outs)}
            block.replace(name, fill(reshape_linear(linear, **form)))
            modules[family.path(block.index, name)] = form
    return {"compressed_modules": modules}
