"""Statistics of one block while it runs: hooks feed accumulators, and are always taken off."""

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lorap_exp.calibration.probes import Probe, to_tensors
from lorap_exp.calibration.statistics import Statistic
from lorap_exp.calibration.stream import Stream, run_layer
from lorap_exp.errors import LorapError
from lorap_exp.models.families import Block

Seen = dict[str, Tensor]
"""Place -> activations (tokens, features) of one batch."""


def measure(
    block: Block,
    position: int,
    stream: Stream,
    probes: Set[Probe],
    *,
    sequences: int,
    beside: Stream | None = None,
    original: nn.Module | None = None,
    keep: bool,
) -> tuple[dict[Probe, Any], Stream | None, Stream | None]:
    """Run a block over all batches and measure what passes through it.

    Args:
        block: as it is now.
        position: in the list of blocks.
        stream: its inputs.
        probes: what is wanted.
        sequences: number of calibration sequences.
        beside: inputs of the original block where a probe asks for it; `stream` itself when they
            are the same.
        original: the untouched block, run beside the present one; None while `block` is untouched.
        keep: whether the outputs are wanted.

    Returns:
        The values, the outputs, and those of the original block while it is untouched; None for
        what is not kept.

    Raises:
        LorapError: an activation that is not finite.
    """
    accumulators = {probe: probe.accumulator() for probe in probes}
    pairs = [probe for probe in probes if probe.of != "current"]
    places = {probe.at for probe in probes} | {probe.beside for probe in pairs if probe.now}
    targets = {probe.beside for probe in pairs if not probe.now}
    apart = beside is not None and (beside is not stream or original is not None)
    originals = None
    if apart and original is None:
        assert beside is not None
        originals = beside.following(())
    if not probes and not keep and originals is None:
        return {}, None, None

    def batches() -> Iterator[Tensor]:
        for number in range(len(stream)):
            call = stream.call(number, position)
            current: Seen = {}
            with observing(block, block.module, places | (set() if apart else targets), current):
                after = run_layer(block.module, stream[number], call)
            other = current
            if apart and (targets or originals is not None):
                assert beside is not None
                other = {}
                module = original if original is not None else block.module
                with observing(block, module, targets, other):
                    output = run_layer(module, beside[number], call)
                if originals is not None:
                    originals.append(output)
            for probe, statistic in accumulators.items():
                _update(probe, statistic, current, other)
            yield after

    if keep:
        following: Stream | None = stream.following(batches())
    else:
        following = None
        for _ in batches():
            pass
    values = {p: _checked(block, p, s.value(sequences)) for p, s in accumulators.items()}
    return values, following, originals


def _update(probe: Probe, statistic: Statistic, current: Seen, original: Seen) -> None:
    if probe.of == "both":
        beside = current if probe.now else original
        statistic.update(current[probe.at], beside[probe.beside])
    else:
        statistic.update((current if probe.of == "current" else original)[probe.at])


@contextmanager
def observing(block: Block, module: nn.Module, places: Set[str], seen: Seen) -> Iterator[None]:
    """Leave the activations at some places, (tokens, features), in `seen` while the block runs."""
    hooks = []

    def before(place: str) -> Callable[..., None]:
        return lambda _, inputs: seen.__setitem__(place, inputs[0].flatten(0, -2))

    def after(place: str) -> Callable[..., None]:
        def keep(_: nn.Module, inputs: Any, output: Any) -> None:
            found = output[0] if isinstance(output, tuple) else output
            seen[place] = found.flatten(0, -2)

        return keep

    try:
        for place in places:
            at = place_in(block, module, place)
            hooks.append(
                at.register_forward_hook(after(place))
                if place.endswith(":out")
                else at.register_forward_pre_hook(before(place))
            )
        yield
    finally:
        for hook in hooks:
            hook.remove()


def place_in(block: Block, module: nn.Module, place: str) -> nn.Module:
    """The module whose input or output a place is."""
    if place.partition(":")[0] == "residual":
        return module
    if place == "middle":
        return module.get_submodule(block.family.norms[1])
    return module.get_submodule(block.family.matrices[place.partition(":")[0]])


def run_batches(module: nn.Module, position: int, stream: Stream) -> Stream:
    """The stream after a block."""
    return stream.following(
        run_layer(module, stream[number], stream.call(number, position))
        for number in range(len(stream))
    )


def _checked(block: Block, probe: Probe, value: Any) -> Any:
    if not all(torch.isfinite(tensor).all() for tensor in to_tensors(value).values()):
        place = "outputs" if probe.sees_output else "inputs"
        raise LorapError(
            f"calibration: the {place} of {probe.matrix} in block {block.index} are not finite; "
            f"try dtype=bfloat16 or dtype=float32"
        )
    return value
