"""LaCo: a layer takes up the differences of the layers behind it, as long as the end stays alike.

Paper: Layer Collapse, arXiv 2402.11187. Code: yangyifei729/LaCo (a notebook). From the last
layers down, theta_l += sum over k of (theta_(l+k) - theta_l), and layers l+1, ... go, when the
final hidden states of a few sentences keep a mean cosine above a threshold (.45 to .6).
Where ours differs: the notebook subtracts the base that it is just overwriting, so that it keeps
the last layer alone; ours subtracts the original one, as the paper writes. It ends at the planned
number of layers: the last merge takes what is left, and when the threshold allows too few merges
it is lowered in fixed steps (both stand in the plan, `Merge`). Sentences are from the calibration.
Published (LLM-Streamline's table), Llama-2-7B at 25 %: BoolQ 64.1, HellaSwag 55.7, PIQA 69.8.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from lorap_exp.calibration.evidence import Survey
from lorap_exp.calibration.stream import entered
from lorap_exp.errors import LorapError
from lorap_exp.methods.contract import Carry, Step, Whole
from lorap_exp.methods.streamline.removal import removed
from lorap_exp.models.families import Block
from lorap_exp.models.layout import shortened
from lorap_exp.models.source import Source
from lorap_exp.planning.edits import Drop, Edit, Merge
from lorap_exp.planning.shapes import Shape
from lorap_exp.planning.spans import net_layers
from lorap_exp.workspace.progress import say


@dataclass(frozen=True, config={"extra": "forbid"})
class LaCo(Step):
    """Merge layers until the planned number is gone.

    Attributes:
        layers: at most this many go into the one before them.
        threshold: least mean cosine of the final hidden states after a merge.
        decrease: of the threshold, when it allows too few merges.
        interval: how many layers before the last merge the next one is tried.
        lowest: the first layer that may take up others.
        samples: calibration sequences whose final states are compared.
    """

    layers: Annotated[int, Field(ge=1)]
    threshold: Annotated[float, Field(ge=-1, le=1)]
    decrease: Annotated[float, Field(gt=0, le=1)]
    interval: Annotated[int, Field(ge=1)]
    lowest: Annotated[int, Field(ge=0)]
    samples: Annotated[int, Field(ge=1)]

    reach: ClassVar[Literal["block", "model"]] = "model"
    removes_layers: ClassVar[bool] = True

    @property
    def needs_whole(self) -> str:
        return ""

    def sequences(self) -> dict[str, int]:
        return {"samples": self.samples}

    def plan(
        self, shape: Shape, ratio: float, seen: Survey | None, alone: bool = True
    ) -> list[Edit]:
        """As many layers as the ratio asks for, the last ones until merges are tried."""
        numbers = [block.index for block in shape.blocks]
        net = net_layers(shape.blocks, ratio * shape.parameters, "none", 1, exceed=alone)
        room = len(numbers) - 1 - self.lowest
        if not 0 < net <= room:
            raise ValueError(
                f"the {net} layers to merge must be at least 1 and at most {max(room, 0)}, those "
                f"behind layer {self.lowest}"
            )
        return [Drop(tuple(numbers[-net:]))]

    @torch.no_grad()
    def apply(
        self, part: Whole, edits: Sequence[Edit], seen: object, carry: Carry
    ) -> Sequence[Edit]:
        assert part.calibration is not None
        source = part.source
        source.restart()
        batches = part.calibration[: self.samples].to(source.device).split(part.how.batch_size)
        trials = self._trials(source, batches, len(removed(edits)))
        shown = part.bars("laco", "trial")(trials)
        merges = [merge for merge in shown if merge is not None]
        part.model = shortened(part.model, merges, {})
        return merges

    def _trials(
        self, source: Source, batches: Sequence[Tensor], left: int
    ) -> Iterator[Merge | None]:
        """Merge in place until `left` layers are gone; None for a trial that was undone."""
        threshold = self.threshold
        target = [final_states(source.model, batch) for batch in batches]
        blocks = {block.index: block for block in source.blocks}
        alive = list(blocks)
        while left:
            position = len(alive) - 1 - min(self.layers, left)
            while left and position >= self.lowest:
                base, behind = alive[position], alive[position + 1 :][: min(self.layers, left)]
                before = collapse(source, blocks[base], [blocks[index] for index in behind])
                gone = [block for index, block in blocks.items() if index not in alive]
                with entered([*gone, *(blocks[index] for index in behind)], None):
                    states = [final_states(source.model, batch) for batch in batches]
                cosine = mean_cosine(states, target)
                if not cosine > threshold:
                    restore(source, blocks[base], before)
                    position -= 1
                    yield None
                    continue
                say(f"  layers {', '.join(map(str, behind))} go into {base}: cosine {cosine:.3f}")
                alive = [index for index in alive if index not in behind]
                left -= len(behind)
                position = min(position - self.interval, len(alive) - 1 - min(self.layers, left))
                yield Merge(tuple(behind), base, cosine, threshold)
            threshold -= self.decrease


Saved = Mapping[tuple[str, str], Tensor]
"""What the parameters of a block's matrices were, by matrix and parameter."""


def collapse(source: Source, base: Block, behind: Sequence[Block]) -> Saved:
    """Add to the matrices of a block, in place, the differences of others to it."""
    with source.opened(base, rewrite=False):
        before = {key: parameter.clone() for key, parameter in parameters_of(base)}
    changes = {key: torch.zeros_like(value, dtype=torch.float32) for key, value in before.items()}
    for other in behind:
        with source.opened(other, rewrite=False):
            for key, parameter in parameters_of(other):
                changes[key] += parameter.float() - before[key].float()
    with source.amended(base):
        for key, parameter in parameters_of(base):
            parameter.copy_(before[key].float() + changes[key])
    return before


def restore(source: Source, block: Block, saved: Saved) -> None:
    """The parameters as they were."""
    with source.amended(block):
        for key, parameter in parameters_of(block):
            parameter.copy_(saved[key])


def parameters_of(block: Block) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """The parameters of a block's matrices."""
    for name in block.family.matrices:
        for key, parameter in block.linear(name).named_parameters():
            yield (name, key), parameter


def final_states(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    """Hidden states behind the final norm, one vector for each sequence, (B, T * H)."""
    states: Tensor = model.get_decoder()(ids_BT, use_cache=False).last_hidden_state
    return states.flatten(1).float()


def mean_cosine(found: Sequence[Tensor], target: Sequence[Tensor]) -> float:
    """Mean over all sequences of the cosine of their final states.

    Raises:
        LorapError: a state that is not finite.
    """
    pairs = zip(found, target, strict=True)
    cosine = torch.cat([cosine_similarity(x, y) for x, y in pairs]).mean().item()
    if not math.isfinite(cosine):
        raise LorapError(
            "laco: the final hidden states are not finite; try dtype=bfloat16 or dtype=float32"
        )
    return cosine
