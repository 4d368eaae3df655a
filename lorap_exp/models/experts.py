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
from lorap_exp.planning.shapes import Shape

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
        raise LorapError(
            f"ratio must leave {needed} to {total} of {total} experts in a layer (a token uses "
            f"{needed}), got {count}"
        )
    return {field: count}


@torch.no_grad()
def keep_experts(block: Block, kept: Sequence[int]) -> None:
    """Only the experts with these numbers stay in a block, in place.

    Raises:
        LorapError: the block has no experts.
    """
    parts = block.per_expert()
    for module, name in parts:
        parameter = module.get_parameter(name)
        index = torch.tensor(list(kept), device=parameter.device)
        smaller = nn.Parameter(parameter.index_select(0, index), requires_grad=False)
        module.register_parameter(name, smaller)
    assert block.family.mlp is not None
    holders: list[Any] = [block.module.get_submodule(block.family.mlp), *(m for m, _ in parts)]
    for holder in holders:
        if hasattr(holder, "num_experts"):
            holder.num_experts = len(kept)


def check_experts(shape: Shape, config: PreTrainedConfig) -> None:
    """Refuse a plan whose layers keep fewer experts than a token needs, or unequal numbers."""
    counts = {b.widths["experts"] for b in shape.blocks if "experts" in b.widths}
    for count in counts:
        experts_setting(config, count)
    if len({b.size("experts") for b in shape.blocks if "experts" in b.matrices}) > 1:
        raise LorapError(
            f"method.protect must be [0, 0] when experts are removed: every layer has as many, "
            f"got {sorted(counts)} in some"
        )
