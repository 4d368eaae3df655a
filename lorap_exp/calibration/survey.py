"""Measurements of a whole model that is not changed: statistics of every block, gradients, scores.

Statistics of the original model's activations lie in the store, one entry for each block and probe;
a pass over the model measures only what is missing there.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from lorap_exp.calibration.evidence import (
    Evidence,
    Sharing,
    Survey,
    canonical,
    store_values,
    stored,
)
from lorap_exp.calibration.gradients import gradient_walk
from lorap_exp.calibration.probes import Asked, BlockProbe, ModelProbe, Probe, TrialProbe
from lorap_exp.calibration.statistics import STATISTICS
from lorap_exp.calibration.trials import trial_walk
from lorap_exp.calibration.walk import Visit, Walk, walk
from lorap_exp.errors import LorapError
from lorap_exp.models.families import Block
from lorap_exp.models.source import Source
from lorap_exp.workspace.progress import say

Progress = Callable[[str, str], Callable[[Iterable[Any]], Iterable[Any]]]
"""(label, unit) -> a progress bar."""


def survey(
    source: Source,
    ids: Tensor,
    probes: Sequence[Asked],
    how: Walk,
    *,
    sharing: Sharing | None,
    bars: Progress,
) -> Survey:
    """Everything that the probes ask for, of the model as it comes in.

    Args:
        source: not changed.
        ids: calibration tokens (samples, length).
        probes: statistics of blocks, and measurements of the whole model.
        how: batch size and place; the propagation is the original one.
        sharing: the store of an original model; None for a model that was changed.
        bars: progress bars.
    """
    local = {canonical(probe) for probe in probes if isinstance(probe, Probe)}
    others: list[Any] = list(dict.fromkeys(p for p in probes if not isinstance(p, Probe)))
    trials: list[TrialProbe] = [probe for probe in others if hasattr(probe, "rewritings")]
    others = list(dict.fromkeys([*others, *(trial.after() for trial in trials)]))
    derived: list[BlockProbe] = [probe for probe in others if hasattr(probe, "derive")]
    fewer = {probe: sequences for probe in derived if (sequences := probe.sequences) is not None}
    for probe in derived:
        if probe not in fewer:
            local |= {canonical(need) for need in probe.needs()}
    whole: dict[Any, Any] = {}
    for probe in others:
        if probe not in derived and probe not in trials:
            whole[probe] = _model_probe(
                source, ids, probe, how.batch_size, sharing=sharing, bars=bars
            )
    blocks = measured(source, ids, local, how, sharing=sharing, bars=bars) if local else {}
    for probe, sequences in fewer.items():
        few, kept = ids[:sequences], sharing
        if sharing is not None and sequences < len(ids):
            kept = replace(sharing, inputs={**sharing.inputs, "sequences": sequences})
        needs = {canonical(need) for need in probe.needs()}
        found = measured(source, few, needs, how, sharing=kept, bars=bars)
        blocks = {n: found[n] | blocks[n] if n in blocks else found[n] for n in found}
    for probe in derived:
        shown = bars(probe.name, "block")
        whole[probe] = {
            block.index: _derived(source, block, probe, blocks[block.index], sharing)
            for block in shown(source.blocks)
            if block.family.matrices
        }
    for trial in trials:
        whole[trial] = _tried(
            source, ids, trial, blocks, whole[trial.after()], how, sharing=sharing, bars=bars
        )
    return Survey(blocks, whole)


def _tried(
    source: Source,
    ids: Tensor,
    probe: TrialProbe,
    seen: Mapping[int, Evidence],
    derived: Mapping[int, dict[str, Tensor]],
    how: Walk,
    *,
    sharing: Sharing | None,
    bars: Progress,
) -> dict[int, list[float]]:
    """Damages of each block that is rewritten alone, by its number."""

    def rewritings(block: Block) -> Sequence[Callable[[Block], None]]:
        return probe.rewritings(block, seen[block.index], derived[block.index])

    def compute() -> dict[str, list[float]]:
        few = ids[: probe.sequences]
        found = trial_walk(source, few, rewritings, how, bars(probe.name, "block"))
        return {str(index): values for index, values in found.items()}

    if sharing is None:
        raw = compute()
    else:
        key = {**sharing.weights, **sharing.inputs, **asdict(probe)}  # type: ignore[call-overload]
        raw = sharing.store.json(probe.name, key, compute)
    return {int(index): values for index, values in raw.items()}


def _derived(
    source: Source, block: Block, probe: BlockProbe, seen: Evidence, sharing: Sharing | None
) -> dict[str, Tensor]:
    def compute() -> dict[str, Tensor]:
        with source.opened(block, rewrite=False, original=True):
            return probe.derive(block, seen)

    if sharing is None:
        return compute()
    key = {**sharing.weights, **sharing.inputs, "block": block.index, **vars(probe)}
    return sharing.store.tensors(probe.name, key, compute)


def _model_probe(
    source: Source,
    ids: Tensor,
    probe: ModelProbe,
    batch_size: int,
    *,
    sharing: Sharing | None,
    bars: Progress,
) -> Any:
    def compute() -> dict[str, Any]:
        with source.originals():
            return probe.measure(source, ids, batch_size, bars(probe.name, "batch"))

    if sharing is None:
        return compute()
    key = {**sharing.weights, **sharing.inputs, **vars(probe)}
    return sharing.store.json(probe.name, key, compute)


def measured(
    source: Source,
    ids: Tensor,
    probes: Set[Probe],
    how: Walk,
    *,
    sharing: Sharing | None,
    bars: Progress,
) -> dict[int, Evidence]:
    """Evidence of every block of a model that is not changed, by its number."""
    probes = {canonical(probe) for probe in probes}
    if sharing is None:
        found = _pass(source, ids, probes, how, bars)
        return {index: Evidence(values, index) for index, values in found.items()}
    numbers = [block.index for block in source.blocks]
    names = {"probes": sorted(map(str, probes)), "blocks": numbers}
    with sharing.store.lock("walks", {**sharing.weights, **sharing.inputs, **names}):
        missing = {
            probe
            for probe in probes
            if not all(sharing.store.sound("statistics", sharing.key(n, probe)) for n in numbers)
        }
        if missing:
            for index, values in _pass(source, ids, missing, how, bars).items():
                store_values(sharing, index, values)
        keys = [sharing.key(number, probe) for number in numbers for probe in probes]
        held = sharing.store.pin("statistics", keys)
    if not held:
        say("  warning: store.limit_gib does not hold the statistics of all blocks: not shared")
        found = _pass(source, ids, probes, how, bars)
        return {index: Evidence(values, index, sharing, True) for index, values in found.items()}
    return {
        number: Evidence(stored(sharing, number, probes, source.device), number, sharing, True)
        for number in numbers
    }


def _pass(
    source: Source, ids: Tensor, probes: Set[Probe], how: Walk, bars: Progress
) -> dict[int, dict[Probe, Any]]:
    """Measure every probe of every block in one forward pass, and one backward where needed."""
    plain = tuple(sorted((p for p in probes if not p.grad), key=str))
    gradients = {probe for probe in probes if probe.grad}
    found: dict[int, dict[Probe, Any]] = {block.index: {} for block in source.blocks}
    together = bool(gradients) and all(probe.of == "current" for probe in plain)
    if plain and not together:
        original = Walk(how.batch_size, "original", "block", how.place, rewrite=False)
        blocks = walk(source, ids, [Visit((), plain)], original)
        shown = bars("survey", "block")
        for block, _, evidence in shown(blocks):
            found[block.index] |= {probe: evidence[probe] for probe in plain if probe in evidence}
    if gradients:
        shown = bars("gradients", "block")
        for sampled in (False, True):
            chosen = {p for p in gradients if STATISTICS[p.what].sampled == sampled}
            if not chosen:
                continue
            beside = set(plain) if together else set()
            together = False
            walked = gradient_walk(source, ids, chosen, how, sampled=sampled, plain=beside)
            for index, values in shown(walked):
                found[index] |= values
    if not found:
        raise LorapError("calibration: the model has no block")
    return found
