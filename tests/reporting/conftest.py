"""Jobs as they lie on disk, made without a model."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorap_exp.evaluation.accuracy import TaskScore
from lorap_exp.evaluation.perplexity import Perplexity
from lorap_exp.evaluation.scores import Scores
from lorap_exp.planning.edits import Edit, Factor, Insert, Plan, Resize
from lorap_exp.planning.shapes import BlockShape, MatrixShape
from lorap_exp.reporting.result import Result

SIZES = {"q": (64, 64), "k": (32, 64), "v": (32, 64), "o": (64, 64)}
SIZES |= {"gate": (176, 64), "up": (176, 64), "down": (64, 176)}
MATRICES = {name: MatrixShape(name, *size) for name, size in SIZES.items()}
LAYERS = 4
SHAPES = tuple(BlockShape(index, MATRICES, 2) for index in range(LAYERS))
DENSE = sum(shape.parameters for shape in SHAPES)
SCORED: dict[str, Any] = {
    "length": 128,
    "split": "test",
    "sha256": "0" * 64,
    "tokens": 1000,
    "nll": 3.0,
}


def plan(ratio: float, removed: tuple[int, ...] = ()) -> Plan:
    """Ranks of 8 in every layer that stays; an ffn for the removed ones."""
    if ratio == 0:
        return Plan(0.0)
    edits: list[Edit] = [Insert(removed[0], removed[-1] + 1, "ffn")] if removed else []
    for index in range(LAYERS):
        if index not in removed:
            edits += [Factor(index, "q", 8), Factor(index, "k", 8), Resize(index, "ffn", 88)]
    return Plan(ratio, tuple(edits))


def task_score(task: str, samples: int, acc: float, stderr: float) -> TaskScore:
    """Plain accuracy, on questions with two choices."""
    levels: dict[str, Any] = {"chance": 0.5, "majority": 0.6, "shots": 0}
    return TaskScore(
        task, samples, "acc", acc, stderr, {"acc": acc}, **levels, form="packed", seconds=1.0
    )


def make_result(
    method: str = "lorap",
    ratio: float = 0.2,
    perplexity: float = 20.0,
    accuracy: float = 0.5,
    seed: int = 0,
    **config: Any,
) -> Result:
    """A finished job; further settings go into its configuration."""
    settings = {"name": "x", "ratio": ratio, "seed": seed, "published": None}
    settings |= {"evaluation": {"name": "paper"}, "data": {"source": "hub"}, "dtype": "float32"}
    settings |= {"model": {"name": "tiny_model"}, "method": {"name": method}} | config
    kept = int(DENSE * (1 - ratio))
    return Result(
        config=settings,
        versions={"torch": "2.13.0"},
        commit="abc123",
        device="cpu",
        source="random",
        comparable=True,
        calibration={},
        shapes=SHAPES,
        plan=plan(ratio),
        parameters={
            "dense": {"decoder": DENSE, "total": DENSE},
            "compressed": {"decoder": kept, "total": kept},
        },
        bytes={"dense": 2 * DENSE, "compressed": 2 * kept},
        curves={},
        scores=Scores(
            (
                Perplexity(
                    "wikitext2", "WikiText-2", "lorap", **SCORED, perplexity=perplexity, seconds=2.0
                ),
            ),
            (task_score("boolq", 100, accuracy, 0.05),),
        ),
        seconds={"load": 1.0, "compress": 2.0},
        peak_memory={"load host": 2**30, "compress host": 2**31},
    )


def write_job(folder: Path, result: Result | None, **status: str) -> Path:
    """A job's folder: finished, or with the reason why it is not."""
    folder.mkdir(parents=True)
    config = make_result(ratio=0.7).config if result is None else result.config
    (folder / "config.json").write_text(json.dumps(config))
    state = status or {"state": "done"}
    (folder / "status.json").write_text(json.dumps(state))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result.to_dict()))
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Five finished jobs with everything that a page can show, and a failed one."""
    folder = tmp_path / "a_sweep"
    write_job(folder / "ratio=0", make_result("dense", 0.0, 10.0, 0.7))
    for method, better in (("lorap", 1.0), ("svd_all", 2.0)):
        for ratio in (0.2, 0.5):
            result = make_result(method, ratio, 20 * better / ratio, 0.6 / better)
            write_job(folder / f"method={method},ratio={ratio}", result)
    job = folder / "method=lorap,ratio=0.2"
    spectrum = {"metric": "svd", "matrix": "q", "block": 0, "full": 64, "ranks": {"0.95": 48}}
    spectrum["cumulative"] = [0, 0.8, 1]
    (job / "spectra.json").write_text(json.dumps([spectrum]))
    entries = [(start, length, 1 - 0.1 * length) for length in (1, 2) for start in range(3)]
    selection = {"criterion": "cosine", "map": entries, "removed": [1, 2], "scores": [(1, 0.8)]}
    (job / "selection.json").write_text(json.dumps(selection))
    trained = replace(
        make_result("lorap_lora", 0.2, 15.0),
        curves={"recovery": {"train": [3.0, 2.0], "validation": [(0, 3.0), (2, 2.5)]}},
        plan=plan(0.2, removed=(1, 2)),
    )
    write_job(folder / "method=lorap_lora,ratio=0.2", trained)
    reason = "OutOfMemoryError: <script>alert(1)</script>"
    trace = '  File "walk.py", line 3, in walk\n    raise OutOfMemoryError("<b>")\n'
    failed = write_job(folder / "ratio=0.7", None, state="failed", error=reason, traceback=trace)
    (failed / "command.txt").write_text("python -m lorap_exp 'ratio=<0.7>'\n")
    return folder


@pytest.fixture
def make() -> Callable[..., Result]:
    return make_result
