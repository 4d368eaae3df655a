"""What is measured of a model, and where: a probe is frozen, so it is its own key in the store."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from lorap_exp.calibration.statistics import STATISTICS, Statistic


@dataclass(frozen=True)
class Probe:
    """One statistic at one place of every block.

    Attributes:
        at: a matrix by its name (its input), "q:out" (its output), "residual" (the hidden states
            that enter the block), "residual:out" (those that leave it), "middle" (those that
            enter the norm before the MLP) or "experts" (what the router gives each).
        to: where the second of two activations is observed: "down:out" in the original block,
            "down:now" at the output of the block as it is; by default at the same place, or at the
            output of the matrix.
        what: name of the statistic (see `statistics.STATISTICS`).
        of: whose activations: those of the model as it is now, of the untouched original, or both
            side by side.
        grad: it needs the gradient of the next-token loss at the output of the matrix.
    """

    at: str
    what: str
    of: Literal["current", "dense", "both"] = "current"
    to: str = ""

    @property
    def grad(self) -> bool:
        return STATISTICS[self.what].grad

    @property
    def matrix(self) -> str:
        """The matrix whose input or output is observed."""
        return self.at.partition(":")[0]

    @property
    def sees_output(self) -> bool:
        return self.at.endswith(":out")

    @property
    def beside(self) -> str:
        """Where the original model is observed: at the same place, or at the matrix's output."""
        if self.to:
            return self.to.replace(":now", ":out")
        return f"{self.matrix}:out" if STATISTICS[self.what].target else self.at

    @property
    def now(self) -> bool:
        """Both activations are those of the block as it is."""
        return self.to.endswith(":now")

    def accumulator(self) -> Statistic:
        return STATISTICS[self.what]()

    def key(self) -> dict[str, str]:
        """What the value depends on beside model and tokens."""
        return asdict(self)


class ModelProbe(Protocol):
    """A measurement of a whole model; a frozen dataclass whose fields are its key.

    `name` is the kind of its entry in the store.
    """

    name: ClassVar[str]

    def measure(self, source: Any, ids: Tensor, batch_size: int, progress: Any) -> dict[str, Any]:
        """Plain JSON values; `source.model` runs as it is, weights are there in opened blocks."""
        ...


class BlockProbe(Protocol):
    """What follows from each block and its statistics before sizes are chosen.

    A frozen dataclass whose fields are its key; `name` is the kind of its entries in the store.
    """

    name: ClassVar[str]

    @property
    def sequences(self) -> int | None:
        """Of the calibration, on which its statistics are taken; None for all."""
        ...

    def needs(self) -> Iterable[Probe]:
        """The statistics that it follows from."""
        ...

    def derive(self, block: Any, seen: Any) -> dict[str, Tensor]:
        """Named tensors of one block, given its evidence."""
        ...


class TrialProbe(Protocol):
    """What the model loses when each block alone is rewritten: KL of its logits, nats per token,
    of each of several rewritings.

    A frozen dataclass whose fields are its key; `name` is the kind of its entry in the store.
    """

    name: ClassVar[str]

    @property
    def sequences(self) -> int:
        """Of the calibration, on which it is measured."""
        ...

    def after(self) -> BlockProbe:
        """What must be derived of each block before."""
        ...

    def rewritings(
        self, block: Any, seen: Any, derived: Mapping[str, Tensor]
    ) -> Sequence[Callable[[Any], None]]:
        """Ways to rewrite copies of a block, given its evidence and what was derived of it; as
        many for every block."""
        ...


Asked = Probe | ModelProbe | BlockProbe | TrialProbe
"""What a step can ask to be measured before sizes are chosen."""


def to_tensors(value: Any) -> dict[str, Tensor]:
    """The value of a statistic as named tensors."""
    return {"value": value} if isinstance(value, Tensor) else dict(vars(value))


def from_tensors(probe: Probe, tensors: Mapping[str, Tensor]) -> Any:
    """The reverse of `to_tensors`."""
    return STATISTICS[probe.what].restore(tensors)
