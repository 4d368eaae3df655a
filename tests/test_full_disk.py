"""A disk that is really full: one sentence, and the same command goes on once there is room."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

WORDS = [
    "model=tiny",
    "data=embedded",
    "calibration=embedded",
    "logging=disabled",
    "dtype=float32",
    "evaluation=perplexity",
    "evaluation.perplexity.max_tokens=256",
    "calibration.samples=4",
    "calibration.length=16",
]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a file system be mounted")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def lorap(folder: Path, store: Path) -> subprocess.CompletedProcess[str]:
    places = [f"output_root={folder}", f"store.folder={store}"]
    command = [sys.executable, "-m", "lorap_exp", *places, *WORDS]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("free", [0, 20_000, 300_000])
def test_a_full_disk(small: Path, tmp_path: Path, free: int) -> None:
    """`free` bytes are left: for nothing, for the first files, for a part of the model."""
    filler = small / "filler"
    with filler.open("wb") as file:
        file.write(b"0" * (2 * 2**20 - 4096 - free))
    run = lorap(small, tmp_path / "store")
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert last.startswith("error: ") and "full" in last, run.stderr
    filler.unlink()
    again = lorap(small, tmp_path / "store")
    assert again.returncode == 0, again.stderr
    assert len(list(small.glob("run/*/result.json"))) == 1
    assert not list(small.rglob("*.partial*"))


def test_a_full_store_costs_the_sharing_only(small: Path, tmp_path: Path) -> None:
    store = small / "store"
    store.mkdir()
    (store / ".lorap_exp_store").write_text("")
    with (small / "filler").open("wb") as file:
        file.write(b"0" * (2 * 2**20 - 40_000))
    run = lorap(tmp_path / "out", store)
    assert run.returncode == 0, run.stderr
