"""Claims on GPUs, on a machine whose GPUs are made up: never run on a real one."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lorap_exp.errors import LorapError
from lorap_exp.workspace import device
from lorap_exp.workspace.device import claim_device

Show = Callable[..., None]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Show:
    """Make GPUs of these UUIDs visible."""

    def show(*uuids: str) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
        found = [SimpleNamespace(uuid=uuid) for uuid in uuids]
        monkeypatch.setattr(torch.cuda, "get_device_properties", found.__getitem__)

    return show


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_without_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with claim_device(name) as first, claim_device(name) as second:
        assert first == second == torch.device("cpu")


def test_auto_takes_the_first_free_one(gpus: Show) -> None:
    gpus("a", "b")
    with claim_device("auto") as first:
        assert first == torch.device("cuda:0")
        with claim_device("auto") as second:
            assert second == torch.device("cuda:1")
    with pytest.raises(ValueError, match="a job fails"), claim_device("auto"):
        raise ValueError("a job fails")
    with claim_device("auto") as again:
        assert again == torch.device("cuda:0")


def test_auto_waits_for_a_free_one(gpus: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds all of them held looks again; here the holder goes after the second look."""
    gpus("a")
    looks: list[float] = []
    with ThreadPoolExecutor(1) as other:
        holder = claim_device("auto")
        other.submit(holder.__enter__).result()

        def pause(seconds: float) -> None:
            looks.append(seconds)
            if len(looks) == 2:
                other.submit(holder.__exit__, None, None, None).result()

        monkeypatch.setattr("lorap_exp.workspace.device.time.sleep", pause)
        with claim_device("auto") as claimed:
            assert claimed == torch.device("cuda:0")
    assert looks == [device.PAUSE, device.PAUSE]


def test_what_is_asked_for_by_name_is_taken(gpus: Show) -> None:
    gpus("a", "b")
    with claim_device("cuda:0") as first, claim_device("cuda") as shared:
        assert first == shared == torch.device("cuda:0")
        with claim_device("auto") as other:
            assert other == torch.device("cuda:1")


def test_a_gpu_is_known_by_its_uuid(gpus: Show) -> None:
    """As under SLURM: each process sees its own GPU as the first, and nobody waits."""
    gpus("a")
    with claim_device("auto") as first:
        gpus("b")
        with claim_device("auto") as second:
            assert first == second == torch.device("cuda:0")


def test_a_killed_job_lets_its_gpu_go(gpus: Show, tmp_path: Path) -> None:
    gpus("a")
    with claim_device("auto"):
        (path,) = tmp_path.glob("lorap_exp-*-a.lock")
    lock = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire()"
    command = [sys.executable, "-c", f"{lock}; print(flush=True); input()", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert not device._try(device._lock(0))
        holder.kill()
        holder.wait()
        with claim_device("auto") as claimed:
            assert claimed == torch.device("cuda:0")


def test_a_gpu_that_is_not_there(gpus: Show) -> None:
    gpus("a", "b")
    with (
        pytest.raises(LorapError, match="one of the 2 CUDA devices .* got 'cuda:2'"),
        claim_device("cuda:2"),
    ):
        pass
