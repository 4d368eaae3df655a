"""Training-free replacements: the best linear map from one end of a span to the other.

Least squares on calibration activations with a ridge towards the identity, in closed form. Merged
into `down` of the layer before the span it costs no parameter (ReplaceMe, arXiv 2505.02819).

`fit` says which error is least: `mse`, the plain mean over tokens, or `nmse`, that of
`replacement.relative_error` (not in the paper): weighted least squares, as a token's weight does
not depend on the map.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lorap_exp.calibration.observe import run_batches
from lorap_exp.calibration.stream import Stream, open_stream
from lorap_exp.calibration.walk import Walk
from lorap_exp.models.modeling_compressed import ReplacedLayer
from lorap_exp.models.source import Source
from lorap_exp.ops.least_squares import ridge_solution
from lorap_exp.planning.edits import Drop, Edit, Insert

Fit = Literal["mse", "nmse"]


def linear_replacement(
    source: Source, edits: Sequence[Edit], ids: Tensor, how: Walk, ridge: float, fit: Fit
) -> nn.Module:
    """h[stop] ~ W h[start] as a layer of its own, in the model's dtype.

    Args:
        source: the original model.
        edits: one span of layers that go.
        ids: calibration tokens (samples, T).
        how: batch size, and where hidden states wait.
        ridge: of `ridge_solution`.
        fit: which error is least.
    """
    (part,) = (edit for edit in edits if isinstance(edit, Insert))
    span = span_states(source, edits, ids, how)
    tokens = ((before, after - before, after) for before, after, _ in span.batches())
    update = closed_form(tokens, ridge, fit)
    with torch.device(source.device):
        layer = ReplacedLayer(source.model.config, part.kind, part.residual, part.start)
    identity = torch.eye(len(update), dtype=update.dtype, device=update.device)
    weight = update if part.residual else identity + update
    layer.get_parameter("replacement.down.weight").data = weight.mT.to(source.model.dtype)
    return layer.requires_grad_(False)


@torch.no_grad()
def merge_linear_map(
    source: Source, edits: Sequence[Edit], ids: Tensor, how: Walk, ridge: float, fit: Fit
) -> None:
    """Fit T so that what the MLP before the span adds, times T, makes up for it; merge T in place.

    With h[start] = a + z, z the output of `down`, T minimises |z T - (h[stop] - a)|. Arguments are
    those of `linear_replacement`.
    """
    span = span_states(source, edits, ids, how)
    tokens = ((added, after - before, after) for before, after, added in span.batches())
    update = closed_form(tokens, ridge, fit)
    block = source.blocks[_ends_of(edits)[0] - 1]
    with source.amended(block):
        for parameter in block.linear("down").parameters():
            parameter.data = parameter + (update.mT @ parameter.double()).to(parameter)


@dataclass(frozen=True)
class Span:
    """What enters and leaves a span of layers, and what the MLP in front of it adds."""

    before: Stream
    after: Stream
    added: Stream | None

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """h[start], h[stop] and the output of `down` in front, (B, T, H) each."""
        added = self.before if self.added is None else self.added
        for number in range(len(self.before)):
            before, after = self.before[number], self.after[number]
            yield before, after, added[number].reshape(before.shape)


@torch.no_grad()
def span_states(source: Source, edits: Sequence[Edit], ids: Tensor, how: Walk) -> Span:
    """Hidden states at both ends of the layers that go; no layer behind them runs."""
    start, stop = _ends_of(edits)
    stream = open_stream(source, ids, how.batch_size, how.place)
    before, added = stream, None
    for position, block in enumerate(source.blocks[:stop]):
        if position == start:
            before = stream
        with source.opened(block, rewrite=False, original=True):
            if position != start - 1:
                stream = run_batches(block.module, position, stream)
                continue
            outputs = stream.following(())

            def keep(*call: Any, outputs: Stream = outputs) -> None:
                outputs.append(call[2])

            hook = block.linear("down").register_forward_hook(keep)
            try:
                stream = run_batches(block.module, position, stream)
            finally:
                hook.remove()
            added = outputs
    return Span(before, stream, added)


def _ends_of(edits: Sequence[Edit]) -> tuple[int, int]:
    """The first layer of the span, and the one behind it."""
    gone = [index for edit in edits if isinstance(edit, Drop | Insert) for index in edit.layers]
    return min(gone), max(gone) + 1


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
