"""Evaluation that goes on with smaller batches when memory runs out."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from lorap_exp.errors import LorapError
from lorap_exp.workspace.memory import out_of_memory
from lorap_exp.workspace.progress import say

T = TypeVar("T")


def halving(work: Callable[[int], T], batch_size: int, setting: str) -> T:
    """`work(batch_size)`, with half the batch each time memory runs out; each halving is said.

    Raises:
        LorapError: there is no memory for a batch of one.
    """
    while True:
        try:
            return work(batch_size)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            reason = type(error).__name__
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if batch_size == 1:
            raise LorapError(
                f"{setting} must fit into memory, but {reason} was raised at a batch of 1: use a "
                f"device with more memory or a 16 bit dtype"
            )
        batch_size //= 2
        say(f"  out of memory ({reason}): going on with {setting}={batch_size}")
