"""Statistics of one block while it runs: hooks feed accumulators, and are always taken off."""

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
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


class EnoughSeenError(Exception):
    """Everything that is wanted of a block was seen; the rest of it need not run."""


@dataclass(frozen=True)
class Measured:
    """What a run of a block over all batches left.

    Attributes:
        values: of the probes.
        outputs: the stream behind the block, where it was to be kept.
        originals: the stream behind the original block, where that has inputs of its own.
        recorded: activations of the original block that later measurements of it need, by place.
    """

    values: dict[Probe, Any]
    outputs: Stream | None
    originals: Stream | None
    recorded: dict[str, Stream]


def measure(
    block: Block,
    position: int,
    stream: Stream,
    probes: Set[Probe],
    *,
    sequences: int,
    beside: Stream | None = None,
    record: Set[str] = frozenset(),
    recorded: Mapping[str, Stream] | None = None,
    keep: bool,
) -> Measured:
    """Run a block over all batches and measure what passes through it.

    Args:
        block: as it is now; untouched unless `recorded` is given.
        position: in the list of blocks.
        stream: its inputs.
        probes: what is wanted.
        sequences: number of calibration sequences.
        beside: inputs of the original block where a probe asks for it; `stream` itself when they
            are the same.
        record: places of the original block that are to be kept.
        recorded: those that were kept while the block was untouched.
        keep: whether the outputs are wanted.

    Raises:
        LorapError: an activation that is not finite.
    """
    accumulators = {probe: probe.accumulator() for probe in probes}
    pairs = [probe for probe in probes if probe.of != "current"]
    places = {probe.at for probe in probes} | {probe.beside for probe in pairs if probe.now}
    targets = {probe.beside for probe in pairs if not probe.now} | record
    apart = recorded is None and beside is not None and beside is not stream
    originals = beside.following(()) if apart and beside is not None else None
    kept = {place: stream.following(()) for place in record}
    if not probes and not keep and originals is None and not record:
        return Measured({}, None, None, {})
    own = places if apart or recorded is not None else places | targets

    def batches() -> Iterator[Tensor]:
        for number in range(len(stream)):
            call = stream.call(number, position)
            current: Seen = {}
            after = stream[number]
            with observing(block, block.module, own, current, stop=not keep):
                after = run_layer(block.module, stream[number], call)
            other = current
            if recorded is not None:
                other = {place: states[number] for place, states in recorded.items()}
            elif apart:
                assert beside is not None and originals is not None
                other = {}
                with observing(block, block.module, targets, other):
                    originals.append(run_layer(block.module, beside[number], call))
            for place, states in kept.items():
                states.append(other[place])
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
    return Measured(values, following, originals, kept)


def _update(probe: Probe, statistic: Statistic, current: Seen, original: Seen) -> None:
    if probe.of == "both":
        beside = current if probe.now else original
        statistic.update(current[probe.at], beside[probe.beside])
    else:
        statistic.update((current if probe.of == "current" else original)[probe.at])


@contextmanager
def observing(
    block: Block, module: nn.Module, places: Set[str], seen: Seen, *, stop: bool = False
) -> Iterator[None]:
    """Leave the activations at some places, (tokens, features), in `seen` while the block runs.

    With `stop` the block runs no further than it must for them; what it returns is not defined.
    """
    hooks = []

    def note(place: str, activations: Tensor) -> None:
        seen[place] = activations.flatten(0, -2)
        if stop and len(seen) == len(places):
            raise EnoughSeenError

    def before(place: str) -> Callable[..., None]:
        if place == "experts":
            return lambda experts, inputs: note(place, routed(experts, *inputs[1:3]))
        return lambda _, inputs: note(place, inputs[0])

    def after(place: str) -> Callable[..., None]:
        def keep(_: nn.Module, inputs: Any, output: Any) -> None:
            note(place, output[0] if isinstance(output, tuple) else output)

        return keep

    try:
        for place in sorted(places):
            at = place_in(block, module, place)
            hooks.append(
                at.register_forward_hook(after(place))
                if place.endswith(":out")
                else at.register_forward_pre_hook(before(place))
            )
        yield
    except EnoughSeenError:
        pass
    finally:
        for hook in hooks:
            hook.remove()


def place_in(block: Block, module: nn.Module, place: str) -> nn.Module:
    """The module whose input or output a place is."""
    if place.partition(":")[0] == "residual":
        return module
    if place == "middle":
        return module.get_submodule(block.family.norms[1])
    if place == "experts" and block.family.experts is not None:
        return module.get_submodule(block.family.experts)
    return module.get_submodule(block.family.matrices[place.partition(":")[0]])


def routed(experts: nn.Module, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """What the router gives each expert, (tokens, experts), 0 for those a token does not use."""
    count = next(experts.parameters()).shape[0]
    return weight_TK.new_zeros(len(weight_TK), count).scatter_(1, index_TK, weight_TK)


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
