"""SlimGPT: structured optimal brain surgeon on o (heads) and down (channels).

Paper: arXiv 2412.18110 (no public code found); the local pruner of AMD-AGI/Tyr-the-Pruner
(2503.09657) computes the same. H = E[x x^T] + .01 mean(diag) I; heads go in one round, channels in
16, the kept columns are refitted exactly (`ops.surgeon`); layers lose more the deeper they are.
Where ours differs: key-value heads go whole; rounds are of equal number (the paper's groups
shrink); the growth with depth is a logarithm as in the paper, but what the first layer loses is our
choice (its constants were not found).
Published (Olica, arXiv 2506.08436; ratio of all parameters): LLaMA-7B WikiText-2 at 128 tokens
19.11 at 25 %, 24.55 at 33 %. C4 at 2048 (GRAIL, 2602.23795): Llama-2-7B 26.72 at 50 %.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from lorap_exp.calibration.evidence import Evidence
from lorap_exp.calibration.probes import Probe
from lorap_exp.calibration.walk import Visit
from lorap_exp.methods.contract import Carry, Part
from lorap_exp.methods.low_rank import naming
from lorap_exp.methods.pruning import StructuredPruning, keep_units, size_of
from lorap_exp.ops.surgeon import prune_units
from lorap_exp.planning.depth import DepthShares
from lorap_exp.planning.edits import Edit, Resize
from lorap_exp.planning.rounding import Rounding
from lorap_exp.planning.shapes import SPACES

READERS = {"heads": "o", "ffn": "down"}


@dataclass(frozen=True, config={"extra": "forbid"})
class SlimGpt(StructuredPruning):
    """Prune heads and channels by optimal brain surgeon, more of them in deeper layers.

    Attributes:
        rounds: in which channels go; heads go in one.
        ridge: added to the second moment, relative to its mean diagonal.
        first: ratio of the first layer, as a fraction of the ratio of all.
    """

    rounds: Annotated[int, Field(ge=1)]
    ridge: Annotated[float, Field(gt=0)]
    first: Annotated[float, Field(ge=0, le=1)]

    @property
    def rule(self) -> DepthShares:
        return DepthShares(self.first, Rounding(uniform=False))

    def visits(self, present: Sequence[str]) -> list[Visit]:
        groups = [tuple(n for n in SPACES[space].matrices if n in present) for space in READERS]
        return [Visit(names, tuple(self.probes(names))) for names in groups]

    def probes(self, names: Sequence[str]) -> Iterable[Probe]:
        return [Probe(name, "second_moment") for name in READERS.values() if name in names]

    @torch.no_grad()
    def apply(
        self, part: Part, edits: Sequence[Edit], seen: Evidence, carry: Carry
    ) -> Sequence[Edit]:
        space = "heads" if "o" in part.names else "ffn"
        if (size := size_of(edits, space)) is None:
            return ()
        reader, units = READERS[space], part.shape.size(space)
        with naming(reader, part.block):
            kept, weight = prune_units(
                part.block.weight(reader),
                seen[Probe(reader, "second_moment")].second,
                keep=size,
                units=units,
                rounds=1 if space == "heads" else self.rounds,
                ridge=self.ridge,
            )
        keep_units(part.block, space, kept, units)
        part.block.weight(reader).copy_(weight)
        return [Resize(part.block.index, space, size)]
