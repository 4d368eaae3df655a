"""Several processes that train together: `accelerate launch --multi_gpu -m lorap_exp ...`.

Process 0 runs the whole job; the others wait until it trains, take their part of every batch, and
go back to waiting. Gradients are summed over the processes, so N of them take the steps that one
process takes. On CPUs `torchrun --nproc_per_node N -m lorap_exp ...` does the same. Alone, nothing
happens here.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor
from torch.distributed.distributed_c10d import _get_default_store

T = TypeVar("T")
PATIENCE = timedelta(hours=2)
"""How long a process waits for the others to load the model and meet in a training step."""


class Team:
    """The processes of one launch."""

    def __init__(self) -> None:
        launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        on_cpu = not torch.cuda.is_available()
        self._state = PartialState(cpu=on_cpu, timeout=PATIENCE) if launched else None
        self.size = self._state.num_processes if self._state else 1
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
        """Process 0 says what the others do next.

        Words go through the key-value store of the group, not through a collective: compressing
        and scoring take longer than a collective may wait.
        """
        if self.size > 1:
            store = _get_default_store()
            store.set(f"word/{store.add('told', 1)}", word)

    def hear(self) -> str:
        """What process 0 says next."""
        store = _get_default_store()
        key = f"word/{store.add(f'heard/{self.rank}', 1)}"
        store.wait([key], timedelta(days=30))
        return str(store.get(key).decode())
