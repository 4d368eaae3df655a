"""Memory that is freed: kept for the next pass, or given back."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from lorap_exp.workspace import memory
getattr(memory, sys.argv[1])()
import torch
torch.ones(2**21)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**21)  # 8 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_what_is_kept_is_not_got_anew() -> None:
    """Page by page, 8 MiB are 2,048 faults, or a few where pages are huge."""
    faults = {}
    for name in ("keep_freed_memory", "return_freed_memory"):
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, name], capture_output=True, text=True, check=True
        )
        faults[name] = int(run.stdout)
    assert faults["keep_freed_memory"] < 200
    assert faults["return_freed_memory"] > 10_000
