"""What a person sees while a job runs: a bar for long work, one line when a stage ends."""

import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

PEAK_RESET = Path("/proc/self/clear_refs")


def bar(label: str, unit: str = "it") -> Callable[[Iterable[Any]], Iterable[Any]]:
    """A progress bar with an ETA, as a function to wrap an iterable in."""
    return lambda items: tqdm(items, desc=label, unit=unit, leave=False, file=sys.stderr)


def no_bar(label: str, unit: str = "it") -> Callable[[Iterable[Any]], Iterable[Any]]:
    """No bar, where another process shows it."""
    return iter


def hide_other_bars() -> None:
    """Loading weights and data shows no bars of other libraries between ours; downloads do."""
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()


def say(line: str) -> None:
    """A line about the job, above any bar."""
    tqdm.write(line, file=sys.stderr)


class Meter:
    """Seconds and peak bytes of each stage of a job; a stage that comes again adds up."""

    def __init__(self, device: torch.device, *, quiet: bool = False) -> None:
        self.device, self.quiet = device, quiet
        self.seconds: dict[str, float] = {}
        self.peak_memory: dict[str, int] = {}
        self._open: list[dict[str, int]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a stage and say so in one line when it ends well.

        A stage inside another one belongs to both: the outer peak is not forgotten.
        """
        self._note()
        self._open.append({})
        start = time.perf_counter()
        try:
            yield
            self._note()
        finally:
            peaks = self._open.pop()
            self._keep(peaks)
        seconds = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        for where, peak in peaks.items():
            key = f"{name} {where}"
            self.peak_memory[key] = max(peak, self.peak_memory.get(key, 0))
        if not self.quiet:
            say(f"  {name}: {seconds:.1f} s, peak {max(peaks.values()) / 2**30:.2f} GiB")

    def _note(self) -> None:
        """Keep the peaks so far for the innermost open stage, and begin anew."""
        self._keep(self._peaks())
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        if PEAK_RESET.exists():
            PEAK_RESET.write_text("5")

    def _keep(self, peaks: dict[str, int]) -> None:
        if self._open:
            inner = self._open[-1]
            inner |= {where: max(peak, inner.get(where, 0)) for where, peak in peaks.items()}

    def _peaks(self) -> dict[str, int]:
        """Host peak (of the process where the kernel cannot reset it), and CUDA's."""
        peaks = {"host": host_peak()}
        if self.device.type == "cuda":
            peaks["cuda"] = torch.cuda.max_memory_allocated(self.device)
        return peaks


def host_peak() -> int:
    """Peak bytes of this process since the last reset."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
