"""What a replacement inherits from the first layer it stands for, and what it cannot."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from lorap_exp.errors import LorapError
from lorap_exp.methods.streamline.networks import build_network
from lorap_exp.models.families import blocks_of
from lorap_exp.planning.edits import Insert

Tiny = Callable[..., PreTrainedModel]


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3"])
def test_an_inherited_mlp_computes_what_it_did(tiny: Tiny, name: str) -> None:
    """Whatever the family's activation is."""
    model = tiny(name, blocks=3)
    block = blocks_of(model)[1]
    network = build_network(block, model, Insert(1, 3, "swiglu"), "first")
    x = torch.randn(2, 5, 64)
    torch.testing.assert_close(network(x), block.module.get_submodule("mlp")(x))


def test_what_cannot_be_inherited_is_refused(tiny: Tiny) -> None:
    swiglu, ffn = Insert(1, 3, "swiglu"), Insert(1, 3, "ffn")
    llama = tiny(blocks=3)
    block = blocks_of(llama)[1]
    linear = block.linear("up")
    linear.bias = nn.Parameter(torch.ones(linear.out_features))
    with pytest.raises(LorapError, match="has no up of the form .* without bias, got first"):
        build_network(block, llama, swiglu, "first")
    opt = tiny("opt", blocks=3, intermediate_size=256)
    block = blocks_of(opt)[1]
    block.module.activation_fn = nn.GELU()
    with pytest.raises(LorapError, match="an ffn has relu"):
        build_network(block, opt, ffn, "first")


def test_inheriting_the_mlp(tiny: Tiny) -> None:
    llama = tiny(blocks=3)
    block = blocks_of(llama)[1]
    swiglu, ffn = Insert(1, 3, "swiglu"), Insert(1, 3, "ffn")
    network = build_network(block, llama, swiglu, "first")
    assert torch.equal(network.get_parameter("replacement.up.weight"), block.weight("up"))
    with pytest.raises(LorapError, match=r"initialisation must be random or residual"):
        build_network(block, llama, ffn, "first")
    opt = tiny("opt", blocks=3, intermediate_size=256)
    inherited = build_network(blocks_of(opt)[1], opt, ffn, "first")
    linear = blocks_of(opt)[1].linear("up")
    assert torch.equal(inherited.get_parameter("replacement.up.bias"), linear.bias)
