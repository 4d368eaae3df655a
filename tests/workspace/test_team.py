"""Two processes on the CPU take the steps of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

T = "method.stages.layers.training"
COMMAND = [
    "-m",
    "lorap_exp",
    "model=tiny",
    "model.random.blocks=5",
    "data=embedded",
    "calibration=embedded",
    "calibration.samples=8",
    "calibration.length=32",
    "logging=disabled",
    "dtype=float32",
    "device=cpu",
    "evaluation=perplexity",
    "evaluation.perplexity.max_tokens=512",
    "method=streamline",
    "ratio=0.3",
    f"{T}.text=embedded",
    f"{T}.samples=24",
    f"{T}.validation_samples=4",
    f"{T}.length=32",
    f"{T}.batch_size=5",
    f"{T}.micro_batch=2",
    f"{T}.evaluate_every=2",
    f"{T}.stages=[mse,lm]",
]


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    results = []
    for name, prefix in (("one", []), ("two", launch)):
        where = [f"output_root={tmp_path}", f"name={name}"]
        run = subprocess.run(
            [sys.executable, *prefix, *COMMAND, *where],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert run.returncode == 0, run.stderr
        (path,) = (tmp_path / name).glob("*/result.json")
        results.append(json.loads(path.read_text()))
    assert run.stderr.count("process 1 of 2 trains with it") == 2  # mse and lm
    one, two = results
    for stage in ("mse", "lm"):
        assert two["curves"][stage]["train"] == pytest.approx(
            one["curves"][stage]["train"], rel=1e-4
        )
    assert two["scores"]["perplexity"][0]["nll"] == pytest.approx(
        one["scores"]["perplexity"][0]["nll"], rel=1e-4
    )
