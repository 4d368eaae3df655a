"""Gradients of the next-token loss, one decoder block at a time from the last to the first.

The forward pass keeps the input of every block; the backward pass runs each block once more and
hands the gradient of its input to the one before it. So no more than one block's graph is ever in
memory, and a model that is streamed from disk has gradients too.
"""

from collections.abc import Iterator, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lorap_exp.calibration.observe import measure, place_in, run_batches
from lorap_exp.calibration.probes import Probe, to_tensors
from lorap_exp.calibration.statistics import Statistic
from lorap_exp.calibration.stream import Stream, logits_after, open_stream, run_layer
from lorap_exp.calibration.walk import Walk
from lorap_exp.errors import LorapError
from lorap_exp.models.families import Block
from lorap_exp.models.source import Source


def gradient_walk(
    source: Source,
    ids: Tensor,
    probes: Set[Probe],
    how: Walk,
    *,
    sampled: bool = False,
    plain: Set[Probe] = frozenset(),
) -> Iterator[tuple[int, dict[Probe, Any]]]:
    """Yield (number of a block, its statistics) from the last block to the first.

    The loss of a sequence is the sum of its next-token losses, so gradients are per token. The
    labels are the next tokens or, when `sampled`, drawn from what the model predicts. `plain`
    probes need no gradient: they are measured on the way forward.

    Raises:
        LorapError: a gradient that is not finite.
    """
    blocks = source.blocks
    streams = [open_stream(source, ids, how.batch_size, how.place)]
    forward: list[dict[Probe, Any]] = []
    for position, block in enumerate(blocks):
        with source.opened(block, rewrite=False, original=True), torch.no_grad():
            chosen = {probe for probe in plain if block.has(probe.matrix)}
            found = measure(block, position, streams[-1], chosen, sequences=len(ids), keep=True)
            assert found.outputs is not None
            forward.append(found.values)
            streams.append(found.outputs)
    after = behind(source, streams.pop(), ids.split(how.batch_size), sampled=sampled)
    for position in reversed(range(len(blocks))):
        block, stream = blocks[position], streams.pop()
        there = [probe for probe in probes if block.has(probe.matrix)]
        accumulators = {probe: probe.accumulator() for probe in there}
        with source.opened(block, rewrite=False, original=True):
            after = after.following(
                backward(block, position, stream, after, number, accumulators=accumulators)
                for number in range(len(stream))
            )
        values = {probe: s.value(len(ids)) for probe, s in accumulators.items()}
        for probe, value in values.items():
            if not all(torch.isfinite(tensor).all() for tensor in to_tensors(value).values()):
                raise LorapError(
                    f"calibration: the gradients of {probe.matrix} in block {block.index} are not "
                    f"finite; try dtype=bfloat16 or dtype=float32"
                )
        yield block.index, forward[position] | values


TOKENS = 256
"""Whose logits are held at a time."""


def behind(
    source: Source, final: Stream, batches: Sequence[Tensor], *, sampled: bool = False
) -> Stream:
    """The gradients at the outputs of the last block, given these and the tokens (B, T)."""
    return final.following(
        head_gradient(source, final[number], batch.to(source.device), sampled=sampled)
        for number, batch in enumerate(batches)
    )


@torch.enable_grad()
def head_gradient(
    source: Source, hidden_BTH: Tensor, ids_BT: Tensor, *, sampled: bool = False
) -> Tensor:
    """d(sum of next-token losses) / d(output of the last block), (B, T, H)."""
    rows = max(1, TOKENS // ids_BT.shape[1])
    parts = zip(hidden_BTH.split(rows), ids_BT.split(rows), strict=True)
    return torch.cat([_head_gradient(source, h, ids, sampled=sampled) for h, ids in parts])


def _head_gradient(source: Source, hidden_BTH: Tensor, ids_BT: Tensor, *, sampled: bool) -> Tensor:
    leaf = hidden_BTH.detach().requires_grad_(True)
    logits = logits_after(source, leaf, ids_BT)[:, :-1].flatten(0, 1)
    labels = drawn(logits) if sampled else ids_BT[:, 1:].flatten()
    loss = cross_entropy(logits.float(), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient


@torch.enable_grad()
def backward(
    block: Block,
    position: int,
    stream: Stream,
    after: Stream,
    number: int,
    *,
    accumulators: dict[Probe, Statistic],
) -> Tensor:
    """The gradient at the input of a block for one batch; what the probes ask for on the way."""
    leaf = stream[number].detach().requires_grad_(True)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    hooks = []

    def note(place: str) -> Any:
        def hook(_: Any, given: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[place], outputs[place] = given[0], output

        return hook

    try:
        for place in {probe.at for probe in accumulators}:
            module = place_in(block, block.module, place)
            hooks.append(module.register_forward_hook(note(place)))
        output = run_layer(block.module, leaf, stream.call(number, position))
    finally:
        for hook in hooks:
            hook.remove()
    wanted = [leaf, *outputs.values()]
    gradients = torch.autograd.grad(output, wanted, after[number])
    by_place = dict(zip(outputs, gradients[1:], strict=True))
    with torch.no_grad():
        for probe, statistic in accumulators.items():
            x, g = inputs[probe.at], by_place[probe.at]
            statistic.update(x.detach().flatten(0, -2), g.flatten(0, -2))
    return gradients[0]


def salience(source: Source, ids: Tensor, batch_size: int) -> list[float]:
    """Of each block, the sum over its weights of |w dL/dw|, L the mean next-token loss: Taylor+.

    Args:
        source: the model; the gradients of one block at a time are held, float32.
        ids: tokens (samples, T).
        batch_size: sequences at a time.
    """
    streams = [open_stream(source, ids, batch_size, "device")]
    for position, block in enumerate(source.blocks):
        with source.opened(block, rewrite=False, original=True), torch.no_grad():
            streams.append(run_batches(block.module, position, streams[-1]))
    after = behind(source, streams.pop(), ids.split(batch_size))
    found = []
    for position in reversed(range(len(source.blocks))):
        block, stream = source.blocks[position], streams.pop()
        with source.opened(block, rewrite=False, original=True):
            weights = list(block.module.parameters())
            sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
            after = after.following(
                _through_weights(block, position, stream, after, number, weights, sums)
                for number in range(len(stream))
            )
            terms = zip(weights, sums, strict=True)
            total = sum(float((w.detach().float() * g).abs().sum()) for w, g in terms)
        found.append(total / (len(ids) * (ids.shape[1] - 1)))
    return found[::-1]


@torch.enable_grad()
def _through_weights(
    block: Block,
    position: int,
    stream: Stream,
    after: Stream,
    number: int,
    weights: Sequence[nn.Parameter],
    sums: Sequence[Tensor],
) -> Tensor:
    """The gradient at the input of a block for one batch; those of its weights go to `sums`."""
    leaf = stream[number].detach().requires_grad_(True)
    try:
        for weight in weights:
            weight.requires_grad_(True)
        output = run_layer(block.module, leaf, stream.call(number, position))
        wanted = [leaf, *weights]
        gradients = torch.autograd.grad(output, wanted, after[number], allow_unused=True)
    finally:
        for weight in weights:
            weight.requires_grad_(False)
    for added, gradient in zip(sums, gradients[1:], strict=True):
        if gradient is not None:
            added.add_(gradient)
    return gradients[0]


@torch.no_grad()
def drawn(logits_NV: Tensor) -> Tensor:
    """One label for each token from the model's own prediction, (N,); the same ones every time."""
    generator = torch.Generator(logits_NV.device).manual_seed(0)
    sums = logits_NV.float().softmax(-1).cumsum(-1)
    draws = torch.rand(len(sums), 1, device=sums.device, generator=generator) * sums[:, -1:]
    return torch.searchsorted(sums, draws, right=True).squeeze(1).clamp_max(sums.shape[1] - 1)
