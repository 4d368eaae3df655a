"""Compressed decoder models: a stock architecture whose linear layers changed shape.

This file is complete in itself (torch and transformers only). It is saved beside the weights, so
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` needs nothing else.

`config.compressed_modules` maps a module path to its new shape: {"rank": r} for a factorised
linear layer (low-rank form of arXiv 2404.09695), {"out_features": n} and {"in_features": n} for a
pruned one. Layers that are not listed keep the shape of the stock architecture.
"""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM


class LowRankLinear(nn.Module):
    """y = L (R x) + b in place of y = W x + b, with R of shape (rank, in) and L (out, rank)."""

    def __init__(self, in_features, out_features, rank, bias, **factory):
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.right = nn.Linear(in_features, rank, bias=False, **factory)
        self.left = nn.Linear(rank, out_features, bias=bias, **factory)

    def forward(self, x):
        return self.left(self.right(x))

    @property
    def weight(self):
        """The product L R, computed anew: for inspection, and for tools that ask for a weight."""
        return self.left.weight @ self.right.weight

    @property
    def bias(self):
        return self.left.bias

    def extra_repr(self):
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


def reshape_linear(linear, rank=None, out_features=None, in_features=None):
    """An uninitialised layer of the new shape with the bias, dtype and device of `linear`."""
    factory = {"dtype": linear.weight.dtype, "device": linear.weight.device}
    out_features = out_features or linear.out_features
    in_features = in_features or linear.in_features
    bias = linear.bias is not None
    if rank is not None:
        return LowRankLinear(in_features, out_features, rank, bias, **factory)
    return nn.Linear(in_features, out_features, bias=bias, **factory)


class CompressedModel:
    """Mixin in front of a stock `...ForCausalLM`: builds it, then applies the listed shapes."""

    def __init__(self, config):
        super().__init__(config)  # type: ignore[call-arg]
        with torch.no_grad():
            for path, shape in (config.compressed_modules or {}).items():
                self.set_submodule(path, reshape_linear(self.get_submodule(path), **shape))


class CompressedLlamaConfig(LlamaConfig):
    """Llama with changed shapes."""

    model_type = "compressed_llama"
    compressed_modules: dict | None = None


class CompressedLlamaForCausalLM(CompressedModel, LlamaForCausalLM):
    """Llama and Llama-like models with changed shapes."""

    config_class = CompressedLlamaConfig


class CompressedQwen2Config(Qwen2Config):
    """Qwen2 with changed shapes."""

    model_type = "compressed_qwen2"
    compressed_modules: dict | None = None


class CompressedQwen2ForCausalLM(CompressedModel, Qwen2ForCausalLM):
    """Qwen2 and Qwen2.5 with changed shapes."""

    config_class = CompressedQwen2Config


COMPRESSED = {
    "llama": (CompressedLlamaConfig, CompressedLlamaForCausalLM),
    "qwen2": (CompressedQwen2Config, CompressedQwen2ForCausalLM),
}
for _config, _model in COMPRESSED.values():
    _config.register_for_auto_class()
    _model.register_for_auto_class("AutoModelForCausalLM")
