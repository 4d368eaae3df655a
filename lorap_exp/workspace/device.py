"""The device of a job: jobs of one machine that may choose do not share a GPU.

A job holds its GPU by a lock on a file in the temporary folder, which the operating system lets go
when the process dies. The file is named by the GPU's UUID: an index means another GPU in a process
to which SLURM, Ray or CUDA_VISIBLE_DEVICES shows only some of them, and a GPU that a scheduler gave
to one job alone is always free.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from lorap_exp.errors import LorapError
from lorap_exp.workspace.progress import say
from lorap_exp.workspace.team import Team

PAUSE = 1.0
"""Seconds between two looks for a free GPU."""


def multiplies_bfloat16(name: str) -> bool:
    """Whether the device that `claim_device` would give multiplies bfloat16 faster than float32.

    A CPU without instructions for it (AVX-512 BF16, AMX, Arm BF16) takes several times longer.
    """
    if name != "cpu" and torch.cuda.is_available():
        return True
    able = torch.cpu.get_capabilities()
    return any(able.get(key, False) for key in ("avx512_bf16", "amx_bf16", "bf16"))


@contextmanager
def claim_device(name: str) -> Iterator[torch.device]:
    """The device to work on, given back at the end.

    `auto` is the first visible GPU that no job holds, waits while all are held, and is the CPU
    where there is none. A GPU asked for by name is taken as asked, and held where it was free.
    The processes of an `accelerate launch` take what they were given.
    """
    if (given := Team().device) is not None:
        yield given
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and count == 0):
        yield torch.device("cpu")
        return
    device, lock = _first_free(count) if name == "auto" else _asked(name, count)
    try:
        yield device
    finally:
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        lock.release()


def _asked(name: str, count: int) -> tuple[torch.device, FileLock]:
    device = torch.device("cuda", torch.device(name).index or 0)
    if device.index >= count:
        raise LorapError(
            f"device must be auto, cpu or one of the {count} CUDA devices of this machine, "
            f"got '{name}'"
        )
    lock = _lock(device.index)
    _try(lock)
    return device, lock


def _first_free(count: int) -> tuple[torch.device, FileLock]:
    locks = [_lock(index) for index in range(count)]
    waiting = False
    while True:
        for index, lock in enumerate(locks):
            if _try(lock):
                return torch.device("cuda", index), lock
        if not waiting:
            say(f"  each of the {count} visible GPUs is held by another job; waiting")
            waiting = True
        time.sleep(PAUSE)


def _lock(index: int) -> FileLock:
    gpu = torch.cuda.get_device_properties(index).uuid
    return FileLock(Path(tempfile.gettempdir()) / f"lorap_exp-{os.getuid()}-{gpu}.lock", timeout=0)


def _try(lock: FileLock) -> bool:
    try:
        lock.acquire()
    except Timeout:
        return False
    return True
