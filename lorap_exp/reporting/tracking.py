"""Weights & Biases: one run for each job, grouped by sweep, offline unless asked otherwise, and one
for a report when it is asked for."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from lorap_exp.config import Config
from lorap_exp.errors import LorapError, first_line
from lorap_exp.reporting.result import Result
from lorap_exp.reporting.table import frame
from lorap_exp.workspace.extras import require


class Tracker:
    """The open run of a job, or nothing when logging is disabled."""

    def __init__(self, run: Any | None) -> None:
        self._run = run

    def log_result(self, result: Result) -> None:
        """Metrics, the sizes of every layer, and the row of the paper's table."""
        if self._run is None:
            return
        import wandb

        for name, curve in result.curves.items():
            for step, loss in enumerate(curve["train"]):
                self._run.log({f"{name}/step": step, f"{name}/loss": loss})
            for step, loss in curve["validation"]:
                self._run.log({f"{name}/step": step, f"{name}/validation_loss": loss})
        self._run.log(metrics(result))
        sizes = pd.DataFrame(layer_sizes(result), columns=["layer", "matrix", "kind", "size"])
        tables = {"layers": sizes, "table": frame([result])}
        self._run.log({name: wandb.Table(dataframe=table) for name, table in tables.items()})


@contextmanager
def track(cfg: Config, folder: Path) -> Iterator[Tracker]:
    """Open a run and always finish it, as failed when the job raises."""
    if cfg.logging.wandb == "disabled":
        yield Tracker(None)
        return
    run = _open(
        cfg.logging.wandb,
        "logging",
        project=cfg.logging.project,
        entity=cfg.logging.entity,
        group=cfg.name,
        name=folder.name,
        dir=str(folder),
        config=cfg.dump(),
        id=_identifier(folder),
        resume="allow" if cfg.logging.wandb == "online" else None,
    )
    exit_code = 1
    try:
        yield Tracker(run)
        exit_code = 0
    finally:
        run.finish(exit_code=exit_code)


def log_sweep(
    title: str,
    table: pd.DataFrame,
    plots: Mapping[str, Path],
    folder: Path,
    *,
    mode: Literal["offline", "online"],
    project: str,
) -> None:
    """One run of a whole sweep: its table, and its plots as images, by name.

    Args:
        title: of the sweep, which is the group of its jobs' runs too.
        table: as in the report.
        plots: image files.
        folder: where the report was written; the run lies below it.
        mode: whether the run is sent.
        project: of W&B.
    """
    report = f"{title} report"
    with _open(
        mode,
        "--wandb",
        project=project,
        group=title,
        name=report,
        id=_identifier(folder),
        resume="allow" if mode == "online" else None,
        job_type="report",
        dir=str(folder),
    ) as run:
        import wandb

        images = {name: wandb.Image(str(path)) for name, path in plots.items()}
        run.log({"table": wandb.Table(dataframe=table), **images})


def _open(mode: Literal["offline", "online"], setting: str, **arguments: Any) -> Any:
    require("wandb", f"{setting} {mode}")
    import wandb

    try:
        quiet = wandb.Settings(silent=True, console="off")
        return wandb.init(mode=mode, settings=quiet, **arguments)
    except wandb.Error as error:
        raise LorapError(
            f"{setting} must not be online where W&B cannot be reached or has no account, "
            f"got {mode}: {first_line(error)}"
        ) from error


def _identifier(folder: Path) -> str:
    """The run of a job that was cut is the run of the one that goes on."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def metrics(result: Result) -> dict[str, float]:
    """Every number of a result under one flat name."""
    flat: dict[str, float] = {"kept": result.kept}
    for score in result.scores.perplexity:
        flat[f"perplexity/{score.label}"] = score.perplexity
    for task in result.scores.tasks:
        flat |= {f"{metric}/{task.task}": value for metric, value in task.metrics.items()}
    if result.scores.generation is not None:
        flat["next_word"] = result.scores.generation.accuracy
    if result.scores.efficiency is not None:
        flat |= {f"speed/{s.what}": s.value for s in result.scores.efficiency.speeds}
    for one in result.scores.stability:
        flat |= {f"stability/{one.task}": one.stability, f"agreement/{one.task}": one.agreement}
    for name, mean in result.scores.means().items():
        flat[name] = mean["value"]
    flat |= {f"parameters/{k}": v for k, v in result.parameters["compressed"].items()}
    flat |= {f"seconds/{k}": v for k, v in result.seconds.items()}
    return flat | {f"memory/{k}": v for k, v in result.peak_memory.items()}


def layer_sizes(result: Result) -> list[list[Any]]:
    """Rank and width of each compressed matrix: [layer, matrix, kind, size]."""
    rows: list[list[Any]] = []
    for block in result.planned.blocks:
        factored = ((name, m.rank) for name, m in block.matrices.items() if m.rank is not None)
        rows += [[block.index, name, "rank", rank] for name, rank in factored]
        rows += [[block.index, name, "width", width] for name, width in block.widths.items()]
    return rows
