"""Memory that is freed: kept for the next pass, or given back."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a fault is a page of 4 KiB
from lorap_exp.workspace import memory
getattr(memory, sys.argv[1])()
import torch
for _ in range(3):
    torch.ones(2**21)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**21)  # 8 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_what_is_kept_is_not_got_anew() -> None:
    """Page by page, twenty times 8 MiB are some 40,000 faults."""
    faults = {}
    for name in ("keep_freed_memory", "return_freed_memory"):
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, name], capture_output=True, text=True, check=True
        )
        faults[name] = int(run.stdout)
    assert faults["keep_freed_memory"] < faults["return_freed_memory"] / 5
