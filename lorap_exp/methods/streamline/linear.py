"""Training-free replacements: the best linear map from one end of a span to the other.

Least squares on calibration activations with a ridge towards the identity, in closed form. Merged
into `down` of the layer before the span it costs no parameter (ReplaceMe, arXiv 2505.02819).

`fit` says which error is least: `mse`, the plain mean over tokens, or `nmse`, that of
`replacement.relative_error` (not in the paper): weighted least squares, as a token's weight does
not depend on the map.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorap_exp.methods.streamline.networks import front_of
from lorap_exp.models.families import blocks_of
from lorap_exp.models.modeling_compressed import ReplacedLayer
from lorap_exp.ops.least_squares import ridge_solution
from lorap_exp.planning.edits import Drop, Edit, Insert

Fit = Literal["mse", "nmse"]


def linear_replacement(
    dense: PreTrainedModel, edits: Sequence[Edit], batches: Iterable[Tensor], ridge: float, fit: Fit
) -> nn.Module:
    """h[stop] ~ W h[start] as a layer of its own, in the model's dtype."""
    (part,) = (edit for edit in edits if isinstance(edit, Insert))
    front = front_of(dense, edits)
    states = (states for states, _ in map(front, batches))
    update = closed_form(((h[0], h[-1] - h[0], h[-1]) for h in states), ridge, fit)
    with torch.device(dense.device):
        layer = ReplacedLayer(dense.config, part.kind, part.residual, part.start)
    identity = torch.eye(len(update), dtype=update.dtype, device=update.device)
    weight = update if part.residual else identity + update
    layer.get_parameter("replacement.down.weight").data = weight.mT.to(dense.dtype)
    return layer.requires_grad_(False)


@torch.no_grad()
def merge_linear_map(
    dense: PreTrainedModel, edits: Sequence[Edit], batches: Iterable[Tensor], ridge: float, fit: Fit
) -> None:
    """Fit T so that what the MLP before the span adds, times T, makes up for it; merge T in place.

    With h[start] = a + z, z the output of `down`, T minimises |z T - (h[stop] - a)|.
    """
    block = blocks_of(dense)[_first(edits) - 1]
    front = front_of(dense, edits)
    outputs: list[Tensor] = []
    watched = front.blocks[block.index].linear("down")
    hook = watched.register_forward_hook(lambda *call: outputs.append(call[2]))
    try:

        def tokens() -> Iterable[tuple[Tensor, Tensor, Tensor]]:
            for batch in batches:
                outputs.clear()
                states, _ = front(batch)
                z = outputs[0].reshape(states[0].shape)
                yield z, states[-1] - states[0], states[-1]

        update = closed_form(tokens(), ridge, fit)
    finally:
        hook.remove()
    for parameter in block.linear("down").parameters():
        parameter.data = parameter + (update.mT @ parameter.double()).to(parameter)


def _first(edits: Sequence[Edit]) -> int:
    return min(edit.layers[0] for edit in edits if isinstance(edit, Drop | Insert))


class Products:
    """X^T X and X^T Y over all tokens, float64."""

    def __init__(self) -> None:
        self.XX = self.XY = torch.zeros((), dtype=torch.float64)

    def add(self, x_NH: Tensor, y_NH: Tensor) -> None:
        self.XX = self.XX.to(x_NH.device) + (x_NH.mT @ x_NH).double()
        self.XY = self.XY.to(x_NH.device) + (x_NH.mT @ y_NH).double()


def closed_form(tokens: Iterable[tuple[Tensor, Tensor, Tensor]], ridge: float, fit: Fit) -> Tensor:
    """B (H, H), float64, for which x B is closest to y.

    Args:
        tokens: x, y and the target state whose norm the error is relative to, each (B, T, H).
        ridge: of `ridge_solution`.
        fit: which error is least.
    """
    plain, relative = Products(), Products()
    count, energy = 0, 0.0
    for batch in tokens:
        x, y, target = (states.flatten(0, -2).float() for states in batch)
        norms = target.norm(dim=-1, keepdim=True)
        plain.add(x, y)
        if fit == "nmse":
            relative.add(x / norms, y / norms)
        count, energy = count + len(x), energy + float(norms.double().square().sum())
    if fit == "mse":
        return ridge_solution(plain.XX, plain.XY, ridge)
    XX, XY = plain.XX / energy + relative.XX / count, plain.XY / energy + relative.XY / count
    return ridge_solution(XX, XY, ridge)
