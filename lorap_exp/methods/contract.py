"""The contract of a method: all that a step of a stack is.

A step says what must be measured (`survey`, `probes`), what sizes it could choose and what they
cost (`options`), and how a part of the model is rewritten to the chosen sizes (`apply`). It never
runs a pass of its own and never sees a ratio. Every verb but `apply` has an empty default.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lorap_exp.calibration.evidence import Survey
from lorap_exp.calibration.probes import Asked, Probe
from lorap_exp.calibration.walk import Visit, Walk
from lorap_exp.data.source import DataSource
from lorap_exp.models.families import Block
from lorap_exp.models.source import Source
from lorap_exp.planning.edits import Edit
from lorap_exp.planning.options import Option, edits_of
from lorap_exp.planning.rounding import Rounding
from lorap_exp.planning.rules import Rule, Uniform
from lorap_exp.planning.shapes import BlockShape, Shape

Bars = Callable[[str, str], Callable[[Iterable[Any]], Iterable[Any]]]
"""(label, unit) -> a progress bar."""
Carry = dict[str, Any]
"""What a step hands on from block to block; "survey" is there from the beginning, if it asked."""


@dataclass(frozen=True)
class Texts:
    """What a step may read before any weight is loaded."""

    tokenizer: PreTrainedTokenizerBase
    data: DataSource
    bos: int | None


@dataclass
class Part:
    """Some matrices of one block, to be rewritten together."""

    block: Block
    names: tuple[str, ...]
    shape: BlockShape
    """As it comes in."""


@dataclass
class Ends:
    """Embedding, final norm and head of a model, after the walk over its blocks."""

    model: PreTrainedModel


class Whole:
    """A whole model for a step of reach "model".

    Attributes:
        source: the model, loaded when it is first asked for; rewritten by the step.
        calibration: tokens (samples, T); None when nothing is calibrated.
        how: a walk is to be done: batch size and place of hidden states.
        read: what the step's `read` returned.
        original: opens the original model, beside the compressed one.
        folder: where the step keeps what must survive a kill.
        bars: progress bars.
        curves: losses by name, left by the step.
    """

    def __init__(
        self,
        reload: Callable[[], Source],
        *,
        calibration: Tensor | None,
        how: Walk,
        read: Any,
        original: Callable[[], Source],
        folder: Path,
        bars: Bars,
    ) -> None:
        self._reload = reload
        self._source: Source | None = None
        self.calibration, self.how = calibration, how
        self.read, self.original, self.folder, self.bars = read, original, folder, bars
        self.curves: dict[str, Any] = {}

    @property
    def source(self) -> Source:
        if self._source is None:
            self._source = self._reload()
        return self._source

    @property
    def model(self) -> PreTrainedModel:
        """The model itself; another one may be put in its place."""
        return self.source.model

    @model.setter
    def model(self, model: PreTrainedModel) -> None:
        self.source.adopt(model)

    def release(self) -> None:
        """Forget the model while only parts of it are needed; it is loaded again afterwards."""
        self._source = None


class Step:
    """One step of a method; a frozen dataclass whose fields are its configuration.

    Neighbours of reach "block" share one walk over the blocks. A step of reach "model" gets the
    whole model at once.
    """

    reach: ClassVar[Literal["block", "model"]] = "block"
    trains: ClassVar[bool] = False
    """The model so far is saved before the step, and all processes of a launch take part in it."""
    original_inputs: ClassVar[bool] = False
    """Blocks must read the outputs of original blocks, whatever `calibration.propagation` says."""
    ends: ClassVar[bool] = False
    """After the walk the step is given the embedding and the head (`Ends`) too."""
    removes_layers: ClassVar[bool] = False
    final: ClassVar[bool] = False
    """Nothing may follow it, and it may follow a recovery."""

    @property
    def needs_whole(self) -> str:
        """Why the whole model must be in memory; empty where one block at a time will do."""
        if self.trains:
            return "trains the whole model"
        return "changes the whole model at once" if self.reach == "model" else ""

    @property
    def sized(self) -> Sequence[str]:
        """Names of the matrices whose sizes the step sets; a step without any has no size."""
        return ()

    @property
    def rule(self) -> Rule:
        """How options and a ratio become sizes."""
        return Uniform(Rounding())

    def check(self, config: PreTrainedConfig) -> None:
        """Raise unless the step can work on the architecture."""

    def lengths(self) -> dict[str, int]:
        """Settings that are lengths of sequences, in tokens; checked against the positions."""
        return {}

    def sequences(self) -> dict[str, int]:
        """Settings that count calibration sequences; checked against those that there are."""
        return {}

    def read(self, texts: Texts) -> Any:
        """What the step trains on, read and tokenised before any weight is loaded."""

    def survey(self, shape: Shape, edits: Sequence[Edit]) -> Iterable[Asked]:
        """What is measured of the incoming model before sizes are chosen.

        `edits` were planned without evidence; with it there are as many parameters elsewhere.
        """
        return ()

    def options(self, shape: Shape, seen: Survey | None) -> list[Option]:
        """Every size that the step could choose, priced; without evidence at the same cost."""
        return []

    def plan(
        self, shape: Shape, ratio: float, seen: Survey | None, alone: bool = True
    ) -> list[Edit]:
        """The edits that take a ratio off the step's targets.

        `alone`: no step follows that could take up the rounding.
        """
        options = self.options(shape, seen)
        return edits_of(options, self.rule.choose(options, ratio))

    def additions(self, shape: Shape, seen: Survey | None) -> list[Edit]:
        """Edits that add parameters whatever the ratio; the sizes of the others pay for them."""
        return []

    def forms(self, shape: Shape) -> list[Edit]:
        """Edits that change no size, given the sizes of the whole group.

        Raises:
            ValueError: sizes that the step cannot work on.
        """
        return []

    def visits(self, present: Sequence[str]) -> list[Visit]:
        """Which matrices of a block are rewritten together, in order, and their probes."""
        names = tuple(name for name in present if name in self.sized)
        return [Visit(names, tuple(self.probes(names)))] if names else []

    def probes(self, names: Sequence[str]) -> Iterable[Probe]:
        """What is measured of a block before these matrices are rewritten."""
        return ()

    def apply(self, part: Any, edits: Sequence[Edit], seen: Any, carry: Carry) -> Sequence[Edit]:
        """Rewrite the part to the edits; return what was done, at most as many parameters.

        Args:
            part: a `Part` of a block, or the `Whole` model.
            edits: of the block, or all of the step's.
            seen: the `Evidence` of the block; None for the whole model.
            carry: what the step left there at an earlier block.
        """
        raise NotImplementedError
