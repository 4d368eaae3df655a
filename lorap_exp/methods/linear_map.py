"""Training-free replacements: the best linear map from one end of a span to the other.

Least squares on calibration activations with a ridge towards the identity, in closed form. Merged
into `down` of the layer before the span it costs no parameter (ReplaceMe, arXiv 2505.02819).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorap_exp.methods.replacement import front_of
from lorap_exp.models.families import blocks_of
from lorap_exp.models.modeling_compressed import ReplacedLayer
from lorap_exp.ops.least_squares import ridge_solution
from lorap_exp.planning.plan import Removal


def linear_replacement(
    dense: PreTrainedModel, removal: Removal, batches: Iterable[Tensor], ridge: float
) -> nn.Module:
    """h[stop] ~ W h[start] as a layer of its own, in the model's dtype."""
    (part,) = removal.replacements
    front = front_of(dense, removal)
    update = accumulate(
        ((states[0], states[-1] - states[0]) for states, _ in map(front, batches)), ridge
    )
    with torch.device(dense.device):
        layer = ReplacedLayer(dense.config, part.kind, part.residual, part.start)
    identity = torch.eye(len(update), dtype=update.dtype, device=update.device)
    weight = update if part.residual else identity + update
    layer.get_parameter("replacement.down.weight").data = weight.mT.to(dense.dtype)
    return layer.requires_grad_(False)


@torch.no_grad()
def merge_linear_map(
    dense: PreTrainedModel, removal: Removal, batches: Iterable[Tensor], ridge: float
) -> None:
    """Fit T so that what the MLP before the span adds, times T, makes up for it; merge T in place.

    With h[start] = a + z, z the output of `down`, T minimises |z T - (h[stop] - a)|.
    """
    block = blocks_of(dense)[removal.layers[0] - 1]
    front = front_of(dense, removal)
    outputs: list[Tensor] = []
    watched = front.blocks[block.index].linear("down")
    hook = watched.register_forward_hook(lambda *call: outputs.append(call[2]))
    try:

        def pairs() -> Iterable[tuple[Tensor, Tensor]]:
            for batch in batches:
                outputs.clear()
                states, _ = front(batch)
                yield outputs[0].reshape(states[0].shape), states[-1] - states[0]

        update = accumulate(pairs(), ridge)
    finally:
        hook.remove()
    for parameter in block.linear("down").parameters():
        parameter.data = parameter + (update.mT @ parameter.double()).to(parameter)


def accumulate(pairs: Iterable[tuple[Tensor, Tensor]], ridge: float) -> Tensor:
    """B (H, H), float64, for which x B is closest to y over all tokens of the pairs (B, T, H)."""
    XX = XY = torch.zeros((), dtype=torch.float64)
    for x_BTH, y_BTH in pairs:
        x, y = x_BTH.flatten(0, -2).float(), y_BTH.flatten(0, -2).float()
        XX, XY = XX.to(x.device) + (x.mT @ x).double(), XY.to(x.device) + (x.mT @ y).double()
    return ridge_solution(XX, XY, ridge)
