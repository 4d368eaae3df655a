"""The walk over a model, one decoder block at a time.

`walk` yields each block with what was measured of it; the caller rewrites it; on resumption the
*rewritten* block produces the inputs of the next one (LoRAP, arXiv 2404.09695, section 3;
`propagation="original"` feeds original outputs instead). The outputs of the original model are kept
beside them only when a probe asks for both. Memory holds one block's statistics and the hidden
states of the calibration set.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorap_exp.calibration.evidence import Evidence, Sharing, canonical
from lorap_exp.calibration.observe import measure, run_batches
from lorap_exp.calibration.probes import Probe
from lorap_exp.calibration.stream import Place, open_stream
from lorap_exp.models.families import Block
from lorap_exp.models.source import Source


@dataclass(frozen=True)
class Visit:
    """Matrices of a block that are rewritten together, and what must be known of them before."""

    names: tuple[str, ...]
    probes: tuple[Probe, ...] = ()
    behind: bool = False
    """Measured behind what the visits before it rewrote, whatever the order of the walk."""


@dataclass(frozen=True)
class Walk:
    """How a model is walked.

    Attributes:
        batch_size: sequences at a time.
        propagation: "compressed" or "original" inputs for the next block.
        order: "block" measures everything before the block is rewritten, as LoRAP does; "group"
            measures the probes of each visit behind what the visits before it rewrote.
        place: where hidden states are kept.
    """

    batch_size: int
    propagation: str = "compressed"
    order: str = "block"
    place: Place = "device"


@torch.no_grad()
def walk(
    source: Source,
    ids: Tensor,
    visits: Sequence[Visit],
    how: Walk,
    *,
    sharing: Sharing | None = None,
    known: Mapping[int, Evidence] | None = None,
) -> Iterator[tuple[Block, Visit, Evidence]]:
    """Yield (block, visit, evidence) for every visit of every block, from first to last.

    Args:
        source: a model in evaluation mode; the caller may rewrite each yielded block.
        ids: calibration tokens (samples, length).
        visits: what is rewritten in every block, in order.
        how: sizes and order.
        sharing: shares what is derived from original blocks with other jobs.
        known: evidence of every block that needs no measurement (all probes are in it).

    Raises:
        LorapError: a non-finite activation, with the block and the matrix.
    """
    probes = {canonical(probe) for visit in visits for probe in visit.probes}
    if known is not None or not probes:
        for block in source.blocks:
            found = known[block.index] if known is not None else None
            with source.opened(block):
                for visit in visits:
                    yield block, visit, found or Evidence({}, block.index, sharing)
        return
    stream = open_stream(source, ids, how.batch_size, how.place)
    both = any(probe.of != "current" for probe in probes)
    beside = stream if both else None
    follow = how.propagation == "compressed"
    again = how.order == "group" or any(visit.behind for visit in visits)
    first = {canonical(p) for v in visits for p in v.probes if not v.behind}
    for position, block in enumerate(source.blocks):
        last = position == len(source.blocks) - 1
        original = position == 0 or not follow
        with source.opened(block):
            untouched = copy.deepcopy(block.module) if both and again else None
            following, following_beside = None, None
            evidence = Evidence({}, block.index, sharing, original)
            for number, visit in enumerate(visits):
                fresh = visit.behind or how.order == "group"
                seen = evidence
                if number == 0 or fresh:
                    wanted = {*map(canonical, visit.probes)} if fresh else set()
                    if number == 0 and how.order == "block":
                        wanted |= first
                    wanted = {probe for probe in wanted if block.has(probe.matrix)}
                    values, after, after_beside = measure(
                        block,
                        position,
                        stream,
                        wanted,
                        sequences=len(ids),
                        beside=beside,
                        original=untouched if number > 0 else None,
                        keep=number == 0 and not last and (not follow or beside is stream),
                    )
                    seen = Evidence(values, block.index, sharing, original and number == 0)
                    if number == 0:
                        following, following_beside, evidence = after, after_beside, seen
                yield block, visit, seen
            if last:
                return
            if follow:
                beside = following_beside or (following if both else None)
                stream = run_batches(block.module, position, stream)
            else:
                assert following is not None
                stream = following
                beside = stream if both else None
