"""What was measured of one block, and what follows from it; each computed once, shared by a store.

An entry of the store is keyed by one probe, not by the set of probes that a method asks for, so
different methods of a sweep share what they share.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lorap_exp.calibration.probes import Probe, from_tensors, to_tensors
from lorap_exp.calibration.statistics import STATISTICS
from lorap_exp.errors import LorapError
from lorap_exp.workspace.store import Store

SAME_INPUT = {"k": "q", "v": "q", "gate": "up"}
"""Matrices that read what another one reads."""


def canonical(probe: Probe) -> Probe:
    """The one probe of those that measure the same activations."""
    own_output = probe.grad or STATISTICS[probe.what].target
    if own_output or probe.at not in SAME_INPUT:
        return probe
    return replace(probe, at=SAME_INPUT[probe.at])


@dataclass(frozen=True)
class Sharing:
    """The store, and what everything computed from the original model depends on.

    Attributes:
        weights: model and dtype.
        inputs: calibration tokens and batch size.
    """

    store: Store
    weights: Mapping[str, Any]
    inputs: Mapping[str, Any]

    def key(self, block: int, probe: Probe) -> dict[str, Any]:
        """Of a statistic of the original model's activations."""
        return {**self.weights, **self.inputs, "block": block, **probe.key()}

    def keep(
        self, block: int, name: str, inputs: bool, compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What follows from an original block, and from its statistics when `inputs`."""
        key = {**self.weights, **(self.inputs if inputs else {}), "block": block, "name": name}
        return self.store.tensors("factors", key, compute)


class Evidence:
    """The values of the probes of one block: `evidence[probe]`.

    Args:
        values: of canonical probes, or functions that read one when it is first asked for.
        block: number of the block.
        sharing: where what follows from original blocks is shared.
        original: the values are those of the original model, whatever the ratio.
    """

    def __init__(
        self,
        values: Mapping[Probe, Any],
        block: int = 0,
        sharing: Sharing | None = None,
        original: bool = False,
    ) -> None:
        self._values, self.block = dict(values), block
        self._sharing, self._original = sharing, original
        self._derived: dict[str, dict[str, Tensor]] = {}

    def __getitem__(self, probe: Probe) -> Any:
        name = canonical(probe)
        if isinstance(self._values[name], partial):
            self._values[name] = self._values[name]()
        return self._values[name]

    def __contains__(self, probe: Probe) -> bool:
        return canonical(probe) in self._values

    def __or__(self, other: "Evidence") -> "Evidence":
        """What both know of one block; of a probe that both have, the other's value."""
        values = self._values | other._values
        return Evidence(values, self.block, other._sharing, other._original)

    def derive(
        self, name: str, compute: Callable[[], dict[str, Tensor]], *, inputs: bool
    ) -> dict[str, Tensor]:
        """What follows from the block, and from these values when `inputs`, computed once."""
        if name not in self._derived:
            shared = self._sharing is not None and (self._original or not inputs)
            self._derived[name] = (
                self._sharing.keep(self.block, name, inputs, compute)
                if self._sharing is not None and shared
                else compute()
            )
        return self._derived[name]


class Survey:
    """What was measured of a whole incoming model before sizes are chosen.

    `survey[block]` is the evidence of a block, `survey.of(probe)` the value of a model probe.
    """

    def __init__(self, blocks: Mapping[int, Evidence], whole: Mapping[Any, Any]) -> None:
        self._blocks, self._whole = blocks, whole

    def __getitem__(self, block: int) -> Evidence:
        return self._blocks[block]

    def of(self, probe: Any) -> Any:
        return self._whole[probe]


def stored(
    sharing: Sharing, block: int, probes: Iterable[Probe], device: torch.device
) -> dict[Probe, Any]:
    """Readers of the statistics that the store holds."""

    def read(probe: Probe) -> Any:
        tensors = sharing.store.tensors("statistics", sharing.key(block, probe), _gone)
        return from_tensors(probe, {name: t.to(device) for name, t in tensors.items()})

    return {probe: partial(read, probe) for probe in probes}


def store_values(sharing: Sharing, block: int, values: Mapping[Probe, Any]) -> None:
    """Leave the statistics of an original block in the store."""
    for probe, value in values.items():
        sharing.store.tensors("statistics", sharing.key(block, probe), partial(to_tensors, value))


def _gone() -> dict[str, Tensor]:
    raise LorapError(
        "store.limit_gib must hold the statistics of all blocks of the jobs that run at once: one "
        "was removed or damaged while it was needed; the same command goes on"
    )
