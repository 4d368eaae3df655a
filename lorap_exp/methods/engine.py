"""The walk in which the steps of a group rewrite a model to their plan, block by block."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lorap_exp.calibration.evidence import Evidence, Sharing, Survey
from lorap_exp.calibration.probes import Probe
from lorap_exp.calibration.survey import measured
from lorap_exp.calibration.walk import Visit, Walk, walk
from lorap_exp.errors import LorapError
from lorap_exp.methods.contract import Bars, Carry, Ends, Part, Step
from lorap_exp.models.source import Source
from lorap_exp.planning.edits import Edit, of_block
from lorap_exp.planning.shapes import Shape

ORDER = ("q", "k", "v", "o", "gate", "up", "down", "experts")


@torch.no_grad()
def rewrite_blocks(
    source: Source,
    group: Sequence[tuple[str, Step]],
    edits: Mapping[str, Sequence[Edit]],
    shape: Shape,
    *,
    ids: Tensor,
    how: Walk,
    sharing: Sharing | None,
    bars: Bars,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    seen: Survey | None = None,
) -> list[Edit]:
    """Calibrate and rewrite every block in one walk.

    Args:
        source: the incoming model, rewritten.
        group: the steps that share the walk.
        edits: what each of them was planned to do.
        shape: of the incoming model.
        ids: calibration tokens (samples, T).
        how: of the walk.
        sharing: the store, for an incoming model that is the original one.
        bars: progress bars.
        progress: wraps the blocks.
        seen: what was measured before sizes were chosen.

    Returns:
        The edits as carried out: a step may move parameters inside a block, within its budget.
    """
    if any(step.original_inputs for _, step in group):
        how = replace(how, propagation="original")
    acting = [
        (name, step, visit) for name, step in group for visit in step.visits(_present(source))
    ]
    if how.order == "group":
        acting.sort(key=lambda item: (item[2].behind, ORDER.index(item[2].names[0])))
    visits = [visit for _, _, visit in acting]
    probes = {probe for visit in visits for probe in visit.probes}
    known = _known(source, ids, probes, visits, how, sharing=sharing, bars=bars)
    carry: dict[str, Carry] = {name: {"survey": seen} if seen else {} for name, _ in group}
    source.hold(carry)
    done = [edit for edits_ in source.done.values() for edit in edits_]
    walked = walk(source, ids, visits, how, sharing=sharing, known=known)
    left = [block for block in source.blocks if not source.finished(block)]
    total = range(len(left) * len(acting))
    for (block, visit, found), position in zip(walked, progress(total), strict=False):
        name, step, _ = acting[position % len(acting)]
        if not block.family.matrices:
            continue
        part = Part(block, visit.names, shape.by_index[block.index])
        carried = list(step.apply(part, of_block(edits[name], block.index), found, carry[name]))
        source.note(carried)
        done += carried
    for name, step in group:
        if step.ends:
            done += step.apply(Ends(source.model), edits[name], None, carry[name])
    return list(dict.fromkeys(done))


def _present(source: Source) -> list[str]:
    """Names of the matrices of a block; replacements that are no blocks have none."""
    names = {name: None for block in source.blocks for name in block.family.matrices}
    return [name for name in ORDER if name in names]


def _known(
    source: Source,
    ids: Tensor,
    probes: set[Probe],
    visits: Sequence[Visit],
    how: Walk,
    *,
    sharing: Sharing | None,
    bars: Bars,
) -> dict[int, Evidence] | None:
    """Statistics of original inputs serve every ratio: from the store, or measured for all jobs.

    Gradients are of the incoming model, so they are always measured before the walk.

    Raises:
        LorapError: gradients are asked for and something else in the middle of the walk.
    """
    fits = how.propagation == "original" and how.order == "block"
    fits = fits and not any(visit.behind for visit in visits)
    fits = fits and all(probe.of == "current" for probe in probes)
    gradients = any(probe.grad for probe in probes)
    if gradients and not fits:
        raise LorapError(
            "calibration.order must be block, and all stages must read original inputs, where one "
            f"stage asks for gradients, got {how.order} and {how.propagation}"
        )
    if not (fits and probes) or (sharing is None and not gradients):
        return None
    return measured(source, ids, probes, how, sharing=sharing, bars=bars)
