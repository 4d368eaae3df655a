"""Several processes that train together: `accelerate launch --num_processes N -m lorap_exp ...`.

Process 0 runs the whole job; the others wait until it trains, take their part of every batch, and
go back to waiting. Gradients are summed over the processes, so N of them take the steps that one
process takes. Alone, nothing happens here.
"""

import os
from collections.abc import Sequence
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from torch import Tensor

T = TypeVar("T")


class Team:
    """The processes of one launch."""

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self._state = PartialState() if self.size > 1 else None
        self.rank = self._state.process_index if self._state else 0

    @property
    def leads(self) -> bool:
        """This process writes files; the others only compute."""
        return self.rank == 0

    @property
    def device(self) -> torch.device | None:
        """The device that this process was given; None when it is alone."""
        return self._state.device if self._state else None

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """The items of this process."""
        return items[self.rank :: self.size]

    def add(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self._state is None:
            return tensor
        total: Tensor = reduce(tensor, reduction="sum")
        return total

    def wait(self) -> None:
        """Until every process is here."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def tell(self, word: str) -> None:
        """Process 0 says what the others do next."""
        if self._state is not None:
            broadcast_object_list([word])

    def hear(self) -> str:
        """What process 0 says next."""
        words = [""]
        broadcast_object_list(words)
        return words[0]
