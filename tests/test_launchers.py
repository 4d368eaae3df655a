"""Every launcher runs the same sweep to the same numbers; a failed job stops no other."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from lorap_exp.config import Config
from lorap_exp.errors import Busy, LorapError
from lorap_exp.workspace.job import open_job
from tests.conftest import TINY

SMALL = [
    *TINY,
    "evaluation.zero_shot=null",
    "calibration.samples=8",
    "calibration.length=32",
    "evaluation.perplexity.max_tokens=512",
]
SWEEP = ["-m", "name=sweep", "method=lorap,svd", "ratio=0.2,0.4,0.6"]
PLUGINS = {
    "processes": "hydra_joblib_launcher",
    "slurm_local": "hydra_submitit_launcher",
    "ray_local": "hydra_ray_launcher",
}
PARALLEL = [pytest.param(name, marks=pytest.mark.slow) for name in PLUGINS]


def need(plugin: str) -> None:
    pytest.importorskip(f"hydra_plugins.{plugin}", reason=f"{plugin} is not installed (an extra)")


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command, in a home of its own: Ray writes a token there."""
    return subprocess.Popen(
        [sys.executable, "-m", "lorap_exp", f"output_root={folder}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HOME": str(folder)},
    )


def lorap(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code, and what was said."""
    process = start(folder, *arguments)
    said = process.communicate()[1]
    return process.returncode, said


def report(sweep: Path) -> str:
    subprocess.run(
        [sys.executable, "-m", "lorap_exp", "report", str(sweep)], check=True, capture_output=True
    )
    return (sweep / "report.csv").read_text()


def read(sweep: Path, name: str) -> dict[str, Any]:
    return {
        path.parent.name: json.loads(path.read_text()) for path in sorted(sweep.glob(f"*/{name}"))
    }


@pytest.fixture(scope="session")
def serial(tmp_path_factory: pytest.TempPathFactory, workload: list[str]) -> Path:
    """The sweep of six jobs, one after the other."""
    folder = tmp_path_factory.mktemp("serial")
    code, said = lorap(folder, *SWEEP, *workload)
    assert code == 0, said
    return folder / "sweep"


@pytest.mark.parametrize("launcher", PARALLEL)
def test_launchers_give_the_numbers_of_the_serial_one(
    tmp_path: Path, launcher: str, serial: Path, workload: list[str]
) -> None:
    need(PLUGINS[launcher])
    code, said = lorap(tmp_path, *SWEEP, *workload, f"hydra/launcher={launcher}")
    assert code == 0, said
    table = report(tmp_path / "sweep")
    assert len(table.splitlines()) == 7
    assert table == report(serial)


@pytest.mark.parametrize("launcher", [pytest.param("basic"), *PARALLEL])
def test_a_failed_job_leaves_its_reason_and_stops_no_other(tmp_path: Path, launcher: str) -> None:
    if launcher in PLUGINS:
        need(PLUGINS[launcher])
    sweep = ["-m", *SMALL, "ratio=0.2,0.99,0.4", "name=sweep", f"hydra/launcher={launcher}"]
    code, said = lorap(tmp_path, *sweep)
    assert code == 1
    assert "\nerror: ratio 0.99 cannot be planned" in said
    assert "Traceback" not in said
    states = {raw["state"]: raw for raw in read(tmp_path / "sweep", "status.json").values()}
    assert len(read(tmp_path / "sweep", "result.json")) == 2
    assert "cannot be planned" in states["failed"]["error"]
    assert set(states) == {"done", "failed"}


def test_workers_of_processes_divide_the_threads() -> None:
    """joblib does, from n_jobs: nothing of ours has to."""
    need("hydra_joblib_launcher")
    ask = "import torch; print(torch.get_num_threads())"
    alone = int(subprocess.run([sys.executable, "-c", ask], capture_output=True, check=True).stdout)
    code = (
        "from joblib import Parallel, delayed; import torch\n"
        "print(*Parallel(2, backend='loky')(delayed(torch.get_num_threads)() for _ in range(2)))"
    )
    clean = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env=clean, text=True
    )
    assert run.stdout.split() == [str(max(alone // 2, 1))] * 2


@pytest.mark.slow
def test_two_processes_share_a_sweep(tmp_path: Path, serial: Path, workload: list[str]) -> None:
    """Started at once: each job is computed once, by either, and both end well."""
    processes = [start(tmp_path, *SWEEP, *workload) for _ in range(2)]
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    lines = [line for text in said for line in text.splitlines() if "/sweep/" in line]
    jobs = read(tmp_path / "sweep", "result.json")
    assert len(jobs) == 6
    for name in jobs:
        about = [line.partition(f"/sweep/{name}: ")[2] for line in lines if f"/{name}: " in line]
        assert len(about) == 2
        assert sum(" at ratio " in line for line in about) == 1, about
        assert sum(line.endswith("skipped") for line in about) == 1, about
    assert not list(tmp_path.rglob("*.partial*"))
    assert {raw["state"] for raw in read(tmp_path / "sweep", "status.json").values()} == {"done"}
    assert report(tmp_path / "sweep") == report(serial)


def test_a_job_that_another_process_runs_is_skipped(tmp_path: Path) -> None:
    job = tmp_path / "job"
    job.mkdir()
    with FileLock(job / ".lock"):
        code, said = lorap(tmp_path, *SMALL, f"hydra.run.dir={job}")
    assert code == 0, said
    assert f"{job}: another process is running it, skipped" in said
    assert [path.name for path in job.iterdir()] == [".lock"]


def test_a_busy_folder_of_another_configuration_is_refused(
    tmp_path: Path, config: Callable[..., Config]
) -> None:
    with open_job(tmp_path, config()):
        with pytest.raises(Busy, match="in use by another"), open_job(tmp_path, config()):
            pass
        with (
            pytest.raises(LorapError, match="ratio was 0.2, now 0.3"),
            open_job(tmp_path, config("ratio=0.3")),
        ):
            pass


@pytest.mark.slow
def test_a_search_finds_its_minimum_and_goes_on(tmp_path: Path) -> None:
    """Three trials in three folders; the same command repeats none of them."""
    need("hydra_optuna_sweeper")
    command = ["experiment=search/allocation", *SMALL, "hydra.sweeper.n_trials=3"]
    code, said = lorap(tmp_path, *command)
    assert code == 0, said
    sweep = tmp_path / "search_allocation"
    results = read(sweep, "result.json")
    found = (sweep / "optimization_results.yaml").read_text()
    values = [raw["scores"]["perplexity"][0]["perplexity"] for raw in results.values()]
    assert len(values) == 3
    assert f"best_value: {min(values)}" in found
    last = max(sweep.glob("*/result.json"), key=lambda path: path.stat().st_mtime_ns)
    shutil.rmtree(last.parent)
    (sweep / "optimization_results.yaml").unlink()
    code, said = lorap(tmp_path, *command)
    assert code == 0, said
    assert said.count("finished before, skipped") == 2
    assert (sweep / "optimization_results.yaml").read_text() == found
    again = read(sweep, "result.json")
    assert {k: v["scores"]["perplexity"][0]["nll"] for k, v in again.items()} == {
        k: v["scores"]["perplexity"][0]["nll"] for k, v in results.items()
    }
