"""LLM-Pruner: coupled groups go by the first-order Taylor term of the loss.

Paper: arXiv 2305.11627. Code: horseee/LLM-Pruner, scripts/llama_prune.sh. A group is a head (rows
of q, k, v and columns of o) or a channel (rows of gate and up, a column of down); its score is the
sum of |w dL/dw| over the group (`param_first`, `sum`). Public settings: layers 4 to 29 of 32, the
same ratio in each, a ratio of all parameters, 10 sequences of 64 tokens; the tuned rows add LoRA.
Where ours differs: the sequences are from C4, since BookCorpus is a script data set that no longer
loads; key-value heads go whole; the number of heads is rounded so that all layers meet the ratio.
Published (LoRAP's table), LLaMA-7B at 0.2 / 0.5: WikiText-2 at 128 tokens 19.09 / 112.44, mean of
seven tasks 56.69 / 42.13; tuned 17.58 / 38.12 and 59.23 / 48.69.
"""

from collections.abc import Iterable, Sequence
from typing import ClassVar

from pydantic.dataclasses import dataclass

from lorap_exp.calibration.evidence import Evidence
from lorap_exp.calibration.probes import Probe
from lorap_exp.methods.contract import Carry, Part
from lorap_exp.methods.pruning import StructuredPruning, keep_units, size_of
from lorap_exp.ops import channels
from lorap_exp.planning.edits import Edit
from lorap_exp.planning.rounding import Rounding
from lorap_exp.planning.rules import Uniform
from lorap_exp.planning.shapes import SPACES


@dataclass(frozen=True, config={"extra": "forbid"})
class LlmPruner(StructuredPruning):
    """Prune heads and channels of every block at one ratio, by gradients of the original loss."""

    original_inputs: ClassVar[bool] = True

    @property
    def rule(self) -> Uniform:
        return Uniform(Rounding(uniform=False))

    def probes(self, names: Sequence[str]) -> Iterable[Probe]:
        return [Probe(name, "weight_gradient") for name in names]

    def apply(
        self, part: Part, edits: Sequence[Edit], seen: Evidence, carry: Carry
    ) -> Sequence[Edit]:
        def graded(names: Sequence[str]) -> channels.Weighted:
            return [
                (part.block.weight(name), seen[Probe(name, "weight_gradient")])
                for name in names
                if name in part.names
            ]

        for space in ("heads", "ffn"):
            if (size := size_of(edits, space)) is None:
                continue
            named, units = SPACES[space], part.shape.size(space)
            scores = channels.taylor(graded(named.writers), graded(named.readers), units)
            keep_units(part.block, space, channels.keep_channels(scores, size, 0), units)
        return edits
