"""SliceGPT: the residual stream is rotated onto its principal directions, and the last ones go.

Paper: arXiv 2401.15024. Public code: microsoft/TransformerCompression. Norms are folded into the
matrices behind them, each layer has a rotation of its own, and linear maps in the shortcuts turn
one into the next. Where ours differs: principal directions are those of the original model's
stream, all from one pass. Published: Llama-2-7B at 50 %, WikiText-2 24.82 (in MoDeGPT's table).
"""

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from lorap_exp.calibration.evidence import Evidence, Survey
from lorap_exp.calibration.probes import Probe
from lorap_exp.calibration.walk import Visit
from lorap_exp.errors import LorapError
from lorap_exp.methods.contract import Carry, Ends, Part, Step
from lorap_exp.models.families import embedding_of, final_norm_of, head_of, slice_norm
from lorap_exp.models.rewriting import dense_like
from lorap_exp.planning.edits import Edit, Plan, Slice
from lorap_exp.planning.shapes import SPACES, Shape

ROWS = 4096
"""Of the embedding and the head, turned at a time."""
PLACES = ("residual", "middle", "residual:out")


@dataclass(frozen=True, config={"extra": "forbid"})
class SliceResidual(Step):
    """Rotate and slice the hidden states of the whole model.

    Attributes:
        round_to: the new hidden size is a multiple of it (8 in the public code), and of the number
            of heads, as configurations ask.
    """

    round_to: Annotated[int, Field(ge=1)]

    original_inputs: ClassVar[bool] = True
    ends: ClassVar[bool] = True

    @property
    def sized(self) -> Sequence[str]:
        return SPACES["residual"].matrices

    def plan(
        self, shape: Shape, ratio: float, seen: Survey | None, alone: bool = True
    ) -> list[Edit]:
        """The largest hidden size whose model, shortcuts included, fits the ratio."""
        budget = (1 - ratio) * shape.parameters
        first = shape.blocks[0]
        heads = first.matrices["q"].out_features // first.size("value")
        step = math.lcm(self.round_to, heads)
        for size in range(first.hidden // step * step, 0, -step):
            if Plan(0.0, (Slice(size),)).shape(shape).parameters <= budget:
                return [Slice(size)]
        raise ValueError(f"no hidden size that is a multiple of {step} is small enough")

    def visits(self, present: Sequence[str]) -> list[Visit]:
        return [Visit(tuple(n for n in self.sized if n in present), tuple(self.probes(())))]

    def probes(self, names: Sequence[str]) -> Iterable[Probe]:
        return [Probe(place, "second_moment") for place in PLACES]

    @torch.no_grad()
    def apply(
        self, part: Part | Ends, edits: Sequence[Edit], seen: Evidence, carry: Carry
    ) -> Sequence[Edit]:
        size = next((edit.size for edit in edits if isinstance(edit, Slice)), None)
        if size is None:
            return ()
        if isinstance(part, Ends):
            self._ends(part, size, carry)
            return edits
        before, middle, after = (self._basis(seen, place, size) for place in PLACES)
        carry.setdefault("first", before)
        self._block(part, carry.get("last", before), middle, after)
        carry["last"] = after
        return edits

    @staticmethod
    def _basis(seen: Evidence, place: str, size: int) -> Tensor:
        """The `size` principal directions of a place, (H, size) float64."""
        second = seen[Probe(place, "second_moment")].second
        return torch.linalg.eigh(second).eigenvectors.flip(-1)[:, :size]

    def _block(self, part: Part, before: Tensor, middle: Tensor, after: Tensor) -> None:
        """Turn what reads the stream by the rotation in front of it, what writes by that behind."""
        block = part.block
        for names, norm, basis in zip(
            (("q", "k", "v"), ("gate", "up")), block.norms, (before, middle), strict=True
        ):
            gain = norm_gain(norm)
            for name in names:
                if name in block.family.matrices:
                    linear = block.linear(name)
                    turned = linear.weight.double() * gain @ basis
                    block.replace(name, dense_like(linear, turned, linear.bias))
        for name, basis in (("o", middle), ("down", after)):
            linear = block.linear(name)
            bias = None if linear.bias is None else basis.mT @ linear.bias.double()
            turned = basis.mT @ linear.weight.double()
            block.replace(name, dense_like(linear, turned, bias))
        block.slice(before.shape[1])
        for name, turn in (("attention", before.mT @ middle), ("mlp", middle.mT @ after)):
            shortcut: Any = block.module.get_submodule(f"shortcut_{name}")
            shortcut.weight.copy_(turn.mT)
            shortcut.requires_grad_(False)

    @staticmethod
    def _ends(part: Ends, size: int, carry: Carry) -> None:
        """Embedding, final norm and head; a tied head becomes a matrix of its own."""
        model = part.model
        embedding, head, norm = embedding_of(model), head_of(model), final_norm_of(model)
        assert norm is not None
        gain = norm_gain(norm)
        dtype = embedding.weight.dtype
        rows = head.weight.split(ROWS)
        turned = torch.cat([(part.double() * gain @ carry["last"]).to(dtype) for part in rows])
        bias = None if head.bias is None else head.bias
        model.set_output_embeddings(dense_like(head, turned, bias))
        small = copy.copy(embedding)
        small._parameters = dict(embedding._parameters)
        rows = embedding.weight.split(ROWS)
        rotated = torch.cat([(part.double() @ carry["first"]).to(dtype) for part in rows])
        small.weight = nn.Parameter(rotated, requires_grad=False)
        small.embedding_dim = size
        model.set_input_embeddings(small)
        slice_norm(norm, size)
        model.config.tie_word_embeddings = False


def norm_gain(norm: nn.Module) -> Tensor:
    """The gain of a root-mean-square norm, (H,) float64.

    Raises:
        LorapError: the norm subtracts a mean, or adds a bias.
    """
    kind = type(norm).__name__
    if "RMSNorm" not in kind or getattr(norm, "bias", None) is not None:
        raise LorapError(f"method: SliceGPT needs root-mean-square norms here, got {kind}")
    gain: Tensor = norm.weight  # type: ignore[assignment]
    return gain.double()
