"""Mixtures of experts: fewer experts in every layer, which stays a stock architecture.

The weights of all experts lie in tensors (experts, ...), and the router has a row for each.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from lorap_exp.errors import LorapError
from lorap_exp.models.families import Block

FIELDS = ("num_local_experts", "num_experts", "n_routed_experts")
"""What configurations call the number of experts."""


def experts_setting(config: PreTrainedConfig, count: int) -> dict[str, int]:
    """`stock` of a model with `count` experts in every layer.

    Raises:
        LorapError: the model has no experts, or a token needs more.
    """
    field = next((name for name in FIELDS if getattr(config, name, None)), None)
    if field is None:
        raise LorapError(f"experts can be removed from a mixture only, got '{config.model_type}'")
    total, needed = getattr(config, field), config.num_experts_per_tok
    if not needed <= count <= total:
        raise LorapError(f"the experts kept must lie in [{needed}, {total}], got {count}")
    return {field: count}


@torch.no_grad()
def keep_experts(block: Block, kept: Sequence[int]) -> None:
    """Only the experts with these numbers stay in a block, in place.

    Raises:
        LorapError: the block has no experts.
    """
    if block.family.experts is None or block.family.mlp is None:
        raise LorapError(f"'{block.family.model_type}' has no experts in block {block.index}")
    mlp = block.module.get_submodule(block.family.mlp)
    experts = block.module.get_submodule(block.family.experts)
    total = next(experts.parameters()).shape[0]
    router = [m for m in mlp.children() if m is not experts and _rows(m) == total]
    for module in (experts, *router):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.shape[0] == total:
                index = torch.tensor(list(kept), device=parameter.device)
                smaller = nn.Parameter(parameter.index_select(0, index), requires_grad=False)
                module.register_parameter(name, smaller)
    holders: list[Any] = [mlp, experts, *router]
    for holder in holders:
        if hasattr(holder, "num_experts"):
            holder.num_experts = len(kept)


def _rows(module: nn.Module) -> int:
    first = next(module.parameters(recurse=False), None)
    return 0 if first is None else first.shape[0]
