"""The lightweight networks that stand in for removed layers, and their training.

LLM-Streamline, arXiv 2403.19135, section 3.2: a network g reads h[start], the input of the first
removed layer, and is trained so that g(h[start]) is close to h[stop] of the original model, with
the causal mask and the positions it will be deployed with. By default the frozen layers run
anew in each step ("online"), none of them beyond the span.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from transformers import PreTrainedModel

from lorap_exp.calibration.stream import Call, run_layer
from lorap_exp.errors import LorapError
from lorap_exp.models.families import Block, blocks_of
from lorap_exp.models.layout import shortened
from lorap_exp.models.modeling_compressed import FeedForward, ReplacedLayer
from lorap_exp.planning.edits import Drop, Edit, Insert

Initialisation = Literal["first", "random", "residual"]


def build_network(
    block: Block, model: PreTrainedModel, replacement: Insert, initialisation: Initialisation
) -> nn.Module:
    """A float32 network for one replacement; `block` is the first layer it stands for.

    `first` inherits: a copy of that layer, of its MLP for swiglu, of its two matrices for an ffn
    of the same shape (OPT). `residual` is the identity at the start (not in the paper).

    Raises:
        LorapError: nothing of the layer fits into the network.
    """
    if replacement.is_block:
        network = copy.deepcopy(block.module)
        if initialisation == "random":
            network.apply(model._init_weights)
        if initialisation == "residual":
            silence(Block(block.index, network, block.family, block.groups, block.heads))
    else:
        with torch.device(model.device):
            network = ReplacedLayer(
                model.config, replacement.kind, replacement.residual, replacement.start
            )
        if initialisation == "first":
            inherit(network.get_submodule("replacement"), block)
        if initialisation == "residual":
            for parameter in network.get_submodule("replacement.down").parameters():
                nn.init.zeros_(parameter)
    return network.float().requires_grad_(True)


def silence(block: Block) -> None:
    """Zero what a decoder layer adds to its input: it becomes the identity."""
    for name in ("o", "down"):
        for parameter in block.linear(name).parameters():
            nn.init.zeros_(parameter)


def inherit(network: nn.Module, block: Block) -> None:
    """Copy the MLP of a layer into a network that computes the same."""
    own_activation = getattr(block.module, "activation_fn", None)  # of OPT
    if isinstance(network, FeedForward) and not isinstance(own_activation, nn.ReLU):
        raise LorapError(
            f"method.stages.layers.initialisation must be random or residual: an ffn has relu, "
            f"the MLP of '{block.family.model_type}' here has not, got first"
        )
    for name, own in network.named_children():
        if not isinstance(own, nn.Linear):
            continue
        source = block.linear(name) if name in block.family.matrices else None
        fits = source is not None and source.weight.shape == own.weight.shape
        if source is None or not fits or (source.bias is not None and own.bias is None):
            form = f"{tuple(own.weight.shape)} {'with' if own.bias is not None else 'without'} bias"
            raise LorapError(
                f"method.stages.layers.initialisation must be random or residual: the MLP of "
                f"'{block.family.model_type}' has no {name} of the form {form}, got first"
            )
        own.weight.data.copy_(source.weight)
        if own.bias is not None:
            nn.init.zeros_(own.bias) if source.bias is None else own.bias.data.copy_(source.bias)


class Front:
    """The frozen layers of a dense model up to the end of a span; later ones never run."""

    def __init__(self, shortened: PreTrainedModel, starts: Sequence[int]) -> None:
        self.decoder = shortened.get_decoder()
        self.blocks = blocks_of(shortened)
        self.starts = list(starts)
        self.device = shortened.device

    @torch.no_grad()
    def __call__(self, ids_BT: Tensor) -> tuple[list[Tensor], list[Call]]:
        """h at each start and at the end of the span, (B, T, H) each, and how layers are called."""
        states: list[Tensor] = []
        calls: list[Call] = []

        def record(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states.append(args[0])
            calls.append(Call(args[1:], kwargs))

        hooks = [
            self.blocks[start].module.register_forward_pre_hook(record, with_kwargs=True)
            for start in self.starts
        ]
        last = self.blocks[-1].module
        hooks.append(last.register_forward_hook(lambda *call: states.append(call[2])))
        try:
            self.decoder(ids_BT.to(self.device), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return states, calls


def front_of(dense: PreTrainedModel, edits: Sequence[Edit]) -> Front:
    """The dense model without the layers behind the span; weights are shared."""
    spans = [edit.layers for edit in edits if isinstance(edit, Drop | Insert)]
    last = max(index for layers in spans for index in layers)
    behind = tuple(range(last + 1, len(blocks_of(dense))))
    short = shortened(dense, [Drop(behind)], {}) if behind else dense
    return Front(short, [layers[0] for layers in spans])


def mapping_loss(
    networks: Sequence[nn.Module],
    states: Sequence[Tensor],
    calls: Sequence[Call],
    arrangement: Literal["series", "segments"],
    error: Callable[[Tensor, Tensor], Tensor] = mse_loss,
) -> Tensor:
    """The error of what the networks make of the states, (B, T, H) each, in float32.

    `series`: the networks one after the other map the first state to the last. `segments`: each
    maps its own state to the next one, and the errors are averaged. `error` is the paper's mean
    over all tokens and features, or `relative_error`.
    """
    if arrangement == "segments":
        losses = [
            error(run_layer(network, before, call).float(), after.float())
            for network, before, after, call in zip(
                networks, states[:-1], states[1:], calls, strict=True
            )
        ]
        return torch.stack(losses).mean()
    hidden = states[0]
    for network, call in zip(networks, calls, strict=True):
        hidden = run_layer(network, hidden, call)
    return error(hidden.float(), states[-1].float())


def relative_error(found_BTH: Tensor, target_BTH: Tensor) -> Tensor:
    """Relative squared error, token by token (mean) and of all tokens together, summed.

    Not in the paper. The first token of a window has a hundred times the norm of the others, so in
    the plain mean it outweighs them all; yet they all attend to it, so it must be matched closely.
    The first term sees every token as the next layer does, which normalises its input; the second
    is the plain mean, in the same unit.
    """
    errors, norms = (x.square().sum(-1) for x in (found_BTH - target_BTH, target_BTH))
    return (errors / norms).mean() + errors.sum() / norms.sum()


@contextmanager
def mixed_precision(model_dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Products in the model's 16 bit type while the trained weights stay float32."""
    enabled = model_dtype != torch.float32
    with torch.autocast(device.type, model_dtype if enabled else None, enabled=enabled):
        yield


def mean_over(
    loss: Callable[[Any], Tensor], examples: Sequence[Any], size: int
) -> Callable[[], float]:
    """Validation: the mean loss over all examples, `size` at a time."""

    @torch.no_grad()
    def validate() -> float:
        parts: Iterable[Sequence[Any]] = (
            examples[i : i + size] for i in range(0, len(examples), size)
        )
        return sum(loss(part).item() * len(part) for part in parts) / len(examples)

    return validate
