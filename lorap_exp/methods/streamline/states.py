"""Hidden states at the ends of a span, for training: computed in each step, or kept.

Kept states need 2 x tokens x hidden size values, 1 to 2 TB for the 61 M tokens that the paper
trains a 7B model on; the default computes them anew.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch import Tensor

from lorap_exp.calibration.stream import Call
from lorap_exp.errors import LorapError
from lorap_exp.methods.streamline.networks import Front
from lorap_exp.workspace.progress import say

Cache = Literal["none", "ram", "disk"]
Progress = Callable[[Iterable[Any]], Iterable[Any]]
FIELD = "method.stages.layers.training.cache"


class States:
    """States of the windows `ids` (N, T): `states[numbers]` gives tensors (B, T, H) and calls."""

    def __init__(self, front: Front, ids: Tensor) -> None:
        self._front, self._ids = front, ids
        self._kept: Tensor | None = None
        self._calls: dict[int, list[Call]] = {}

    def __getitem__(self, numbers: Sequence[int]) -> tuple[list[Tensor], list[Call]]:
        if self._kept is None:
            return self._front(self._ids[numbers])
        if len(numbers) not in self._calls:
            self._calls[len(numbers)] = self._front(self._ids[numbers])[1]
        chosen = self._kept[numbers].to(self._front.device)
        return list(chosen.unbind(1)), self._calls[len(numbers)]

    def keep(self, cache: Cache, folder: Path, batch_size: int, progress: Progress) -> None:
        """Compute all states once, into memory or a file that a later run finds again.

        Raises:
            LorapError: there is no room for them.
        """
        if cache == "none":
            return
        first, _ = self._front(self._ids[:1])
        shape = (len(self._ids), len(first), *first[0].shape[1:])
        size = torch.Size(shape).numel() * first[0].element_size()
        folder.mkdir(parents=True, exist_ok=True)
        marker, path = folder / "states.json", folder / "states.bin"
        complete = cache == "disk" and marker.is_file()
        free = (
            psutil.virtual_memory().available if cache == "ram" else shutil.disk_usage(folder).free
        )
        if size > free and not complete:
            raise LorapError(
                f"{FIELD} must be none where states of {size / 2**30:.1f} GiB do not fit "
                f"({free / 2**30:.1f} GiB are free), got {cache}"
            )
        say(f"  hidden states: {size / 2**30:.2f} GiB in {'memory' if cache == 'ram' else path}")
        if cache == "ram":
            self._kept = torch.empty(shape, dtype=first[0].dtype)
        else:
            if complete and json.loads(marker.read_text()) != list(shape):
                raise LorapError(f"'{marker}' must describe states of shape {list(shape)}")
            flat = torch.from_file(
                str(path), shared=True, size=torch.Size(shape).numel(), dtype=first[0].dtype
            )
            self._kept = flat.view(shape)
        if not complete:
            numbers = list(range(len(self._ids)))
            for begin in progress(range(0, len(numbers), batch_size)):
                part = numbers[begin : begin + batch_size]
                states, _ = self._front(self._ids[part])
                self._kept[part] = torch.stack(states, 1).cpu()
            if cache == "disk":
                marker.write_text(json.dumps(list(shape)))
