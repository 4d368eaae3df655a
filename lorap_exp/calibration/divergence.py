"""How far a model's predictions are from the original one's, and the gradients of its norms' gains.

Both models are walked one block at a time, forward and backward, so each may come from disk. Gains
that are tried out are put into the norms of a block while it is open.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, log_softmax

from lorap_exp.calibration.gradients import TOKENS, drawn
from lorap_exp.calibration.observe import run_batches
from lorap_exp.calibration.stream import Stream, logits_after, open_stream, run_layer
from lorap_exp.calibration.walk import Walk
from lorap_exp.models.families import Block, final_norm_of
from lorap_exp.models.source import Source

Gains = Mapping[str, Tensor]
"""Weights of norms by name: number of the block and path in it, or FINAL."""
FINAL = "final"
ENDS = (torch.zeros_like, torch.ones_like)
"""Gains between which a norm is compared with itself, see `Sums`."""


def norms_of(block: Block) -> dict[str, nn.Module]:
    """The norms of an open block by the names of their gains."""
    return {f"{block.index}.{path}": m for path, m in block.module.named_modules() if _is_norm(m)}


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ and isinstance(
        getattr(module, "weight", None), nn.Parameter
    )


def final_norm(source: Source) -> dict[str, nn.Module]:
    """The norm before the head, if there is one, by the name of its gains."""
    norm = final_norm_of(source.model)
    return {} if norm is None or not _is_norm(norm) else {FINAL: norm}


@contextmanager
def holding(norms: Mapping[str, nn.Module], gains: Gains) -> Iterator[None]:
    """The norms have these gains, as far as they are given."""
    before = {name: norms[name].weight for name in norms if name in gains}
    try:
        put(norms, gains)
        yield
    finally:
        for name, weight in before.items():
            norms[name].weight = weight


def put(norms: Mapping[str, nn.Module], gains: Gains) -> None:
    """Give the norms these gains, as far as they are given."""
    for name, norm in norms.items():
        if name in gains:
            weight: Any = norm.weight
            norm.weight = nn.Parameter(gains[name].to(weight), requires_grad=False)


class Targets:
    """What the original model predicts for some sequences.

    Args:
        original: the original model.
        ids: tokens (samples, T).
        how: batch size and place of hidden states.
        progress: wraps the blocks.
    """

    def __init__(self, original: Source, ids: Tensor, how: Walk, progress: Any = iter) -> None:
        self._original, self.ids, self._how = original, ids, how
        self._final = _behind(original, ids, how, {}, progress)

    def batches(self) -> Iterable[tuple[int, Tensor]]:
        """Number of a batch and its tokens (B, T)."""
        return enumerate(self.ids.split(self._how.batch_size))

    @torch.no_grad()
    def of(self, number: int, rows: slice, ids_BT: Tensor) -> Tensor:
        """Log-probabilities (B, T, V) for some rows of a batch, float32."""
        return log_softmax(
            logits_after(self._original, self._final[number][rows], ids_BT).float(), -1
        )


@torch.no_grad()
def _behind(source: Source, ids: Tensor, how: Walk, gains: Gains, progress: Any = iter) -> Stream:
    """Hidden states behind the last block."""
    stream = open_stream(source, ids, how.batch_size, how.place)
    for position, block in enumerate(progress(source.blocks)):
        with source.opened(block, rewrite=False), holding(norms_of(block), gains):
            stream = run_batches(block.module, position, stream)
    return stream


def _parts(ids_BT: Tensor) -> Iterator[slice]:
    """Rows of a batch whose logits are held at a time."""
    rows = max(1, TOKENS // ids_BT.shape[1])
    return (slice(at, at + rows) for at in range(0, len(ids_BT), rows))


@torch.no_grad()
def divergences(
    source: Source, targets: Targets, how: Walk, candidates: Sequence[Gains]
) -> list[float]:
    """KL(original, model) of the next token in nats, for each of several choices of gains.

    All choices share one pass over the blocks.
    """
    first = open_stream(source, targets.ids, how.batch_size, how.place)
    streams = [first] * len(candidates)
    for position, block in enumerate(source.blocks):
        with source.opened(block, rewrite=False):
            for number, gains in enumerate(candidates):
                with holding(norms_of(block), gains):
                    streams[number] = run_batches(block.module, position, streams[number])
    lost = [0.0] * len(candidates)
    for number, batch in targets.batches():
        ids_BT = batch.to(source.device)
        for rows in _parts(ids_BT):
            few = ids_BT[rows]
            before = targets.of(number, rows, few)
            for which, gains in enumerate(candidates):
                with holding(final_norm(source), gains):
                    after = logits_after(source, streams[which][number][rows], few)
                change = before - log_softmax(after.float(), -1)
                lost[which] += float((before.exp() * change).sum(dtype=torch.float64))
    return [total / targets.ids.numel() for total in lost]


class Sums:
    """Sums over tokens of what two losses say about gains: a gradient, and the squares of another.

    `unit` is a norm's output at gains of one less that at gains of zero, so whatever a norm adds to
    its gains or to its output does not matter.
    """

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, name: str, norm: nn.Module, x: Tensor, pull: Tensor, draw: Tensor) -> None:
        """Of one norm: its input, and the gradients of both losses at its output."""
        weight: Any = norm.weight
        ends = [functional_call(norm, {"weight": f(weight)}, (x,)) for f in ENDS]
        unit = (ends[1].float() - ends[0].float()).flatten(0, -2)
        gradient = (unit * pull.float().flatten(0, -2)).sum(0)
        square = (unit * draw.float().flatten(0, -2)).square().sum(0)
        self.gradients[name] = self.gradients.get(name, 0.0) + gradient
        self.squares[name] = self.squares.get(name, 0.0) + square


class Seen:
    """Inputs and outputs of norms while they run."""

    def __init__(self, norms: Mapping[str, nn.Module]) -> None:
        self._norms = norms
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

    def __enter__(self) -> "Seen":
        self._hooks = [m.register_forward_hook(self._note(n)) for n, m in self._norms.items()]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _note(self, name: str) -> Any:
        def hook(_: Any, given: tuple[Tensor, ...], output: Tensor) -> None:
            self.inputs[name], self.outputs[name] = given[0].detach(), output

        return hook

    def gradients(
        self, leaf: Tensor, losses: Sequence[tuple[Tensor, Tensor | None]], sums: Sums
    ) -> list[Tensor]:
        """Of both losses at `leaf`; what they say about the gains goes to `sums`.

        A loss is a tensor and the gradient at it (None: one).
        """
        wanted = [leaf, *self.outputs.values()]
        found = [
            torch.autograd.grad(loss, wanted, at, retain_graph=number + 1 < len(losses))
            for number, (loss, at) in enumerate(losses)
        ]
        for place, name in enumerate(self.outputs, 1):
            norm, x = self._norms[name], self.inputs[name]
            sums.add(name, norm, x, *(gradients[place] for gradients in found))
        return [gradients[0] for gradients in found]


def gain_gradients(
    source: Source, targets: Targets, how: Walk, gains: Gains, progress: Any = iter
) -> Sums:
    """Gradient of KL(original, model) for all gains, and the Fisher information of each.

    Both are sums over tokens; labels of the latter are drawn from what the model predicts.

    Args:
        source: the model, not changed.
        targets: what the original predicts.
        how: batch size and place of hidden states.
        gains: with which the model runs.
        progress: wraps the blocks of the backward pass.
    """
    blocks, sums = source.blocks, Sums()
    streams = [open_stream(source, targets.ids, how.batch_size, how.place)]
    for position, block in enumerate(blocks):
        with torch.no_grad(), source.opened(block, rewrite=False), holding(norms_of(block), gains):
            streams.append(run_batches(block.module, position, streams[-1]))
    final = streams.pop()
    pulls, draws = final.following(()), final.following(())
    with holding(final_norm(source), gains):
        for number, batch in targets.batches():
            pair = _at_head(source, final[number], targets, number, batch.to(source.device), sums)
            pulls.append(pair[0])
            draws.append(pair[1])
    del final
    for position in progress(range(len(blocks) - 1, -1, -1)):
        block, stream = blocks[position], streams.pop()
        befores = stream.following(()), stream.following(())
        with source.opened(block, rewrite=False), holding(norms_of(block), gains):
            for number in range(len(stream)):
                leaf = stream[number].detach().requires_grad_(True)
                with torch.enable_grad(), Seen(norms_of(block)) as seen:
                    output = run_layer(block.module, leaf, stream.call(number, position))
                    losses = [(output, pulls[number]), (output, draws[number])]
                    for before, gradient in zip(
                        befores, seen.gradients(leaf, losses, sums), strict=True
                    ):
                        before.append(gradient)
        pulls, draws = befores
    return sums


def _at_head(
    source: Source, hidden_BTH: Tensor, targets: Targets, number: int, ids_BT: Tensor, sums: Sums
) -> list[Tensor]:
    """Gradients of both losses at the hidden states behind the last block, (B, T, H) each."""
    found = []
    for rows in _parts(ids_BT):
        few = ids_BT[rows]
        before = targets.of(number, rows, few)
        leaf = hidden_BTH[rows].detach().requires_grad_(True)
        with torch.enable_grad(), Seen(final_norm(source)) as seen:
            logits = logits_after(source, leaf, few).float()
            pull = -(before.exp() * log_softmax(logits, -1)).sum()
            flat = logits.flatten(0, 1)
            draw = cross_entropy(flat, drawn(flat.detach()), reduction="sum")
            found.append(seen.gradients(leaf, [(pull, None), (draw, None)], sums))
    return [torch.cat(parts) for parts in zip(*found, strict=True)]
