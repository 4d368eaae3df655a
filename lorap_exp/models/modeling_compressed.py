"""Compressed decoder models: a stock architecture whose linear layers changed shape.

This file is complete in itself (torch and transformers only). It is saved beside the weights, so
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` needs nothing else.

`config.compressed_modules` maps a module path to its new shape: {"rank": r} for a factorised
linear layer (low-rank form of arXiv 2404.09695), {"out_features": n} and {"in_features": n} for a
pruned one. Layers that are not listed keep the shape of the stock architecture. Architectures
with fused projections (Phi-3) have them split first, so that each part has a shape of its own.

`config.replaced_layers` maps a position in the list of layers to the module that stands there in
place of a decoder layer (arXiv 2403.19135): {"kind": "ffn" | "swiglu" | "linear", "residual":
bool}. `config.original_layers` lists the number that each layer had in the original model.
"""

import torch
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.activations import ACT2FN


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


class SplitLinear(nn.Module):
    """A fused projection as separate ones: the outputs of its parts, side by side."""

    def __init__(self, fused, sizes):
        super().__init__()
        rows = fused.weight.split(list(sizes.values()))
        for (name, size), weight in zip(sizes.items(), rows):
            part = reshape_linear(fused, out_features=size)
            part.weight = nn.Parameter(weight.clone(), requires_grad=fused.weight.requires_grad)
            self.add_module(name, part)

    def forward(self, x):
        return torch.cat([part(x) for part in self.children()], dim=-1)


def reshape_linear(linear, rank=None, out_features=None, in_features=None):
    """An uninitialised layer of the new shape with the bias, dtype and device of `linear`."""
    factory = {"dtype": linear.weight.dtype, "device": linear.weight.device}
    out_features = out_features or linear.out_features
    in_features = in_features or linear.in_features
    bias = linear.bias is not None
    if rank is not None:
        return LowRankLinear(in_features, out_features, rank, bias, **factory)
    return nn.Linear(in_features, out_features, bias=bias, **factory)


def split_fused(model):
    """Split the fused projections of an architecture that has them; others stay as they are."""
    config = model.config
    if not isinstance(config, Phi3Config):
        return model
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_heads = (config.num_key_value_heads or config.num_attention_heads) * head
    heads = config.num_attention_heads * head
    for layer in model.model.layers:
        if isinstance(layer, ReplacedLayer):
            continue
        attention, mlp = layer.self_attn, layer.mlp
        sizes = {"q": heads, "k": kv_heads, "v": kv_heads}
        attention.qkv_proj = SplitLinear(attention.qkv_proj, sizes)
        sizes = {"gate": config.intermediate_size, "up": config.intermediate_size}
        mlp.gate_up_proj = SplitLinear(mlp.gate_up_proj, sizes)
    return model


def join_fused(model):
    """The reverse of `split_fused`, in place: each fused projection as one layer again."""
    for path, split in [(n, m) for n, m in model.named_modules() if isinstance(m, SplitLinear)]:
        parts = list(split.children())
        fused = reshape_linear(parts[0], out_features=sum(part.out_features for part in parts))
        fused.weight = nn.Parameter(torch.cat([part.weight for part in parts]), False)
        model.set_submodule(path, fused)
    return model


class FeedForward(nn.Module):
    """W2 relu(W1 x + b1) + b2 with 4 H intermediate features."""

    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.down = nn.Linear(4 * config.hidden_size, config.hidden_size)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


class GatedFeedForward(nn.Module):
    """W_down (act(W_gate x) * (W_up x)) at the model's intermediate size, without biases.

    The activation is the model's own (silu for most); OPT, whose MLP has no gate, gets silu.
    """

    def __init__(self, config):
        super().__init__()
        hidden = config.hidden_size
        if isinstance(config, OPTConfig):
            inner, activation = config.ffn_dim, "silu"
        else:
            inner = config.intermediate_size
            activation = getattr(config, "hidden_activation", None) or config.hidden_act
        self.activation = ACT2FN[activation]
        self.gate = nn.Linear(hidden, inner, bias=False)
        self.up = nn.Linear(hidden, inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(self, x):
        return self.down(self.activation(self.gate(x)) * self.up(x))


class LinearMap(nn.Module):
    """W x, from closed-form least squares."""

    def __init__(self, config):
        super().__init__()
        self.down = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down(x)


REPLACEMENTS = {"ffn": FeedForward, "swiglu": GatedFeedForward, "linear": LinearMap}


class ReplacedLayer(nn.Module):
    """Stands in the list of decoder layers and maps hidden states only.

    It is not among the layers whose outputs `output_hidden_states=True` collects.
    """

    def __init__(self, config, kind, residual, layer_idx):
        super().__init__()
        self.residual, self.layer_idx = residual, layer_idx
        self.replacement = REPLACEMENTS[kind](config)

    def forward(self, hidden_states, *args, past_key_values=None, **kwargs):
        if past_key_values is not None:
            # caches read the sequence length off the first layer of each kind, whichever it is
            mark = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            past_key_values.update(mark, mark, self.layer_idx)
        mapped = self.replacement(hidden_states)
        return hidden_states + mapped if self.residual else mapped


class CompressedModel:
    """Mixin in front of a stock `...ForCausalLM`: builds it, then applies what the config lists."""

    def __init__(self, config):
        super().__init__(config)  # type: ignore[call-arg]
        with torch.no_grad():
            for position, settings in (config.replaced_layers or {}).items():
                index = int(position)
                replaced = ReplacedLayer(config, layer_idx=index, **settings)
                self.get_decoder().layers[index] = replaced.to(self.dtype)
            split_fused(self)
            for path, shape in (config.compressed_modules or {}).items():
                self.set_submodule(path, reshape_linear(self.get_submodule(path), **shape))


class CompressedSettings:
    """What a compressed configuration has beside the stock one's settings."""

    compressed_modules: dict | None = None
    replaced_layers: dict | None = None
    original_layers: list | None = None


class CompressedLlamaConfig(CompressedSettings, LlamaConfig):
    model_type = "compressed_llama"


class CompressedLlamaForCausalLM(CompressedModel, LlamaForCausalLM):
    config_class = CompressedLlamaConfig


class CompressedMistralConfig(CompressedSettings, MistralConfig):
    model_type = "compressed_mistral"


class CompressedMistralForCausalLM(CompressedModel, MistralForCausalLM):
    config_class = CompressedMistralConfig


class CompressedQwen2Config(CompressedSettings, Qwen2Config):
    model_type = "compressed_qwen2"


class CompressedQwen2ForCausalLM(CompressedModel, Qwen2ForCausalLM):
    config_class = CompressedQwen2Config


class CompressedQwen3Config(CompressedSettings, Qwen3Config):
    model_type = "compressed_qwen3"


class CompressedQwen3ForCausalLM(CompressedModel, Qwen3ForCausalLM):
    config_class = CompressedQwen3Config


class CompressedGemma3TextConfig(CompressedSettings, Gemma3TextConfig):
    model_type = "compressed_gemma3_text"


class CompressedGemma3TextForCausalLM(CompressedModel, Gemma3ForCausalLM):
    config_class = CompressedGemma3TextConfig


class CompressedOPTConfig(CompressedSettings, OPTConfig):
    model_type = "compressed_opt"


class CompressedOPTForCausalLM(CompressedModel, OPTForCausalLM):
    config_class = CompressedOPTConfig


class CompressedPhi3Config(CompressedSettings, Phi3Config):
    model_type = "compressed_phi3"


class CompressedPhi3ForCausalLM(CompressedModel, Phi3ForCausalLM):
    config_class = CompressedPhi3Config


COMPRESSED = {
    "llama": (CompressedLlamaConfig, CompressedLlamaForCausalLM),
    "mistral": (CompressedMistralConfig, CompressedMistralForCausalLM),
    "qwen2": (CompressedQwen2Config, CompressedQwen2ForCausalLM),
    "qwen3": (CompressedQwen3Config, CompressedQwen3ForCausalLM),
    "gemma3_text": (CompressedGemma3TextConfig, CompressedGemma3TextForCausalLM),
    "opt": (CompressedOPTConfig, CompressedOPTForCausalLM),
    "phi3": (CompressedPhi3Config, CompressedPhi3ForCausalLM),
}
for _config, _model in COMPRESSED.values():
    _config.register_for_auto_class()
    _model.register_for_auto_class("AutoModelForCausalLM")
