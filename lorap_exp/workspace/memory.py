"""Memory and disks that are exhausted, as libraries say it, and memory that is given back."""

import ctypes
import errno
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

M_MMAP_THRESHOLD, LARGE = -3, 2**20
"""glibc's name for the size from which an allocation is given back when it is freed, and ours."""


def return_freed_memory() -> None:
    """Let the C library give large tensors back to the system as soon as they are freed.

    glibc raises that size to the largest tensor that was ever freed, so a process that reads one
    block after the other keeps several. Other libraries have no such setting and need none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)


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
