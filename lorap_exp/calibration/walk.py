"""The walk over a model, one decoder block at a time.

`walk` yields each block with what was measured of it; the caller rewrites it; on resumption the
*rewritten* block produces the inputs of the next one (LoRAP, arXiv 2404.09695, section 3;
`propagation="original"` feeds original outputs instead). The outputs of the original model are kept
beside them only when a probe asks for both. Memory holds one block's statistics and the hidden
states of the calibration set.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorap_exp.calibration.evidence import Evidence, Sharing, canonical
from lorap_exp.calibration.observe import measure, run_batches
from lorap_exp.calibration.probes import Probe
from lorap_exp.calibration.stream import Place, Stream, open_stream
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
        rewrite: the caller may rewrite blocks; otherwise they are only looked at.
    """

    batch_size: int
    propagation: str = "compressed"
    order: str = "block"
    place: Place = "device"
    rewrite: bool = True


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
            if source.finished(block):
                continue
            with source.opened(block):
                for visit in visits:
                    yield block, visit, found or Evidence({}, block.index, sharing)
        return
    streams = Streams(source, ids, visits, how, sharing)
    for position, block in enumerate(source.blocks):
        if how.rewrite and source.finished(block):
            streams.pass_by(block, position)
            continue
        with source.opened(block, rewrite=how.rewrite, original=not how.rewrite):
            streams.enter(block, position)
            for number, visit in enumerate(visits):
                yield block, visit, streams.evidence(number, visit)
            streams.leave()


class Streams:
    """The inputs of a block: what it gets now and, where a probe asks, what it got originally."""

    def __init__(
        self,
        source: Source,
        ids: Tensor,
        visits: Sequence[Visit],
        how: Walk,
        sharing: Sharing | None,
    ) -> None:
        self._source, self._how, self._sharing = source, how, sharing
        self._sequences, self._last = len(ids), len(source.blocks) - 1
        probes = [probe for visit in visits for probe in visit.probes]
        self._both = any(probe.of != "current" for probe in probes)
        later = [v for v in visits[1:] if how.order == "group" or v.behind]
        pairs = [canonical(p) for v in later for p in v.probes if p.of != "current" and not p.now]
        self._later = {probe.beside for probe in pairs}
        self._first = {canonical(p) for v in visits for p in v.probes if not v.behind}
        self._follow = how.propagation == "compressed"
        self._now = open_stream(source, ids, how.batch_size, how.place)
        self._before = self._now if self._both else None

    def enter(self, block: Block, position: int) -> None:
        """Begin a block that is still untouched."""
        self._block, self._position = block, position
        self._recorded: dict[str, Stream] = {}
        self._after: Stream | None = None
        self._after_before: Stream | None = None
        self._shared = Evidence({}, block.index, self._sharing, self._is_original)

    @property
    def _is_original(self) -> bool:
        return self._position == 0 or not self._follow

    def evidence(self, number: int, visit: Visit) -> Evidence:
        """What is known before a visit: measured for the whole block, or anew for this visit."""
        fresh = visit.behind or self._how.order == "group"
        if number > 0 and not fresh:
            return self._shared
        wanted = {*map(canonical, visit.probes)} if fresh else set()
        if number == 0 and self._how.order == "block":
            wanted |= self._first
        begins = number == 0
        there = self._block.has
        seen = measure(
            self._block,
            self._position,
            self._now,
            {probe for probe in wanted if there(probe.matrix)},
            sequences=self._sequences,
            beside=self._before,
            record={p for p in self._later if there(p.partition(":")[0])} if begins else set(),
            recorded=None if begins else self._recorded,
            keep=begins and self._keeps,
        )
        original = self._is_original and begins
        found = Evidence(seen.values, self._block.index, self._sharing, original)
        if begins:
            self._after, self._after_before = seen.outputs, seen.originals
            self._shared, self._recorded = found, seen.recorded
        return found

    @property
    def _keeps(self) -> bool:
        """Outputs of the untouched block on its present inputs are wanted."""
        same = self._before is self._now
        return self._position < self._last and (not self._follow or same)

    def leave(self) -> None:
        """Go on to the next block."""
        if self._position == self._last:
            return
        if self._follow:
            self._before = self._after_before or (self._after if self._both else None)
            self._after = None
            self._now = run_batches(self._block.module, self._position, self._now)
        else:
            assert self._after is not None
            self._now = self._after
            self._before = self._now if self._both else None

    def pass_by(self, block: Block, position: int) -> None:
        """Go on past a block that was rewritten before the process was killed."""
        if position == self._last:
            return
        original = None
        if self._both or not self._follow:
            with self._source.opened(block, rewrite=False, original=True):
                original = run_batches(block.module, position, self._before or self._now)
        if self._follow:
            with self._source.opened(block, rewrite=False):
                self._now = run_batches(block.module, position, self._now)
            self._before = original if self._both else None
        else:
            assert original is not None
            self._now, self._before = original, original if self._both else None
