"""Training a frozen model's weights in float32: copies that it is called with and given back."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call


def float32_copies(named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, nn.Parameter]:
    """A trainable copy of each parameter, by its name."""
    return {name: nn.Parameter(weight.detach().float().clone()) for name, weight in named}


def call_with(
    module: nn.Module, weights: Mapping[str, nn.Parameter], *args: Any, **kwargs: Any
) -> Any:
    """What a module gives with these weights, rounded to the dtypes of its own."""
    cast = {name: w.to(module.get_parameter(name).dtype) for name, w in weights.items()}
    return functional_call(module, cast, args, kwargs)


@torch.no_grad()
def write_back(module: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
    """Leave the weights in the module."""
    for name, weight in weights.items():
        module.get_parameter(name).copy_(weight)
