"""Memory and disks that are exhausted, as libraries say it, and memory that is given back."""

import ctypes
import errno
import os
from collections.abc import Iterator

MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",
    "out of memory",
    "os error 12)",
)
"""How torch (CPU and CUDA) and Rust libraries say that they found no memory."""
DISK = ("no space left on device", "os error 28", "disk quota exceeded", "os error 122")
"""How Rust libraries (safetensors, tokenizers) say that a disk is full."""

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""glibc's names: free memory at the heap's end that is kept, what it grows by, and the size from
which an allocation is mapped by itself and given back when it is freed."""
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""Torch's variable: allocations of 2 MiB and more ask for huge pages. Read at the first of them."""


def keep_freed_memory() -> None:
    """Let the process keep what it frees, and large tensors lie on huge pages.

    Otherwise each forward pass gets its activations anew from the system, page by page, which takes
    up to a sixth of its time (docs/evaluation.md). Other C libraries need no setting.
    """
    os.environ.setdefault(HUGE_PAGES, "1")
    _set(M_MMAP_THRESHOLD, 2**25)  # the most that glibc takes
    _set(M_TRIM_THRESHOLD, 2**31 - 1)
    _set(M_TOP_PAD, 2**26)


def return_freed_memory() -> None:
    """Let the C library give large tensors back to the system as soon as they are freed.

    glibc raises that size to the largest tensor that was ever freed, so a process that reads one
    block after the other keeps several.
    """
    _set(M_MMAP_THRESHOLD, 2**20)
    _set(M_TRIM_THRESHOLD, 2**17)
    _set(M_TOP_PAD, 2**17)


def _set(name: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(name, value)


def out_of_memory(error: BaseException) -> bool:
    """Whether CUDA or the host had no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    return any(text in str(error).lower() for text in MEMORY)


def disk_full(error: BaseException) -> bool:
    """Whether the error, or what caused it, is a disk without space."""
    return any(_full(one) for one in causes(error))


def _full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(text in str(error).lower() for text in DISK)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from, the last first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
