"""The command line: Hydra composes, `pipeline.run` works, errors become one sentence."""

import hashlib
import os
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lorap_exp.commands import subcommands
from lorap_exp.commands.catalogue import ORDER, catalogue, conf_folder, options_of
from lorap_exp.commands.explanations import explain
from lorap_exp.commands.failures import sentence
from lorap_exp.commands.methods import methods, ratio_unless
from lorap_exp.commands.overrides import check_sweeps, prepared
from lorap_exp.commands.sweep import close_sweep
from lorap_exp.config import Config, validate
from lorap_exp.errors import Busy, LorapError, shown
from lorap_exp.schema.values import folder_path, plain_name

OmegaConf.register_new_resolver(
    "basename", lambda path: Path(str(path)).name or str(path), replace=True
)


OmegaConf.register_new_resolver(
    "under", lambda folder, path: str(Path(folder) / str(path)), replace=True
)


def place(root: Any, name: Any) -> str:
    """The folder of a sweep, checked before Hydra makes it.

    Raises:
        LorapError: output_root is no folder, or name leads out of it.
    """
    for key, value, allowed in (("output_root", root, folder_path), ("name", name, plain_name)):
        try:
            allowed("" if value is None else str(value))
        except ValueError as error:
            raise LorapError(f"{key} {error}, got {shown(value)}") from error
    return str(Path(str(root)) / str(name))


OmegaConf.register_new_resolver("place", place, replace=True)


def fast_dtype(device: Any) -> str:
    """The default dtype; see `workspace.device.multiplies_bfloat16`."""
    from lorap_exp.workspace.device import multiplies_bfloat16

    return "bfloat16" if multiplies_bfloat16(str(device)) else "float32"


OmegaConf.register_new_resolver("fast_dtype", fast_dtype, replace=True)
OmegaConf.register_new_resolver("ratio_unless", ratio_unless, replace=True)
OmegaConf.register_new_resolver("methods", methods, replace=True)
DRY_RUN: ContextVar[bool] = ContextVar("dry_run", default=False)
"""Whether the jobs are listed and not run: `--dry-run`."""
failed: list[Path] = []
"""Jobs of this command that ended in an exception."""


def slug(text: str) -> str:
    """A folder's name for the overrides of a job: no slashes, at most 200 characters."""
    name = re.sub(r"[^\w.=,+-]+", "_", text) or "default"
    if len(name) <= 200:
        return name
    return f"{name[:187]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


OmegaConf.register_new_resolver("slug", slug, replace=True)


@hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
def job(cfg: DictConfig) -> float | None:
    """One job of a run or a sweep; its value for a search is the perplexity of the first text."""
    from lorap_exp.workspace.memory import keep_freed_memory

    keep_freed_memory()  # before torch asks for any
    from lorap_exp.commands.following import next_job
    from lorap_exp.models.ahead import read_ahead
    from lorap_exp.pipeline import run
    from lorap_exp.steps.follow import follow
    from lorap_exp.workspace.progress import hide_other_bars
    from lorap_exp.workspace.state import find_twin
    from lorap_exp.workspace.team import Team

    hide_other_bars()
    hydra_cfg = HydraConfig.get()
    os.chdir(hydra_cfg.runtime.cwd)  # a worker of a Ray cluster starts elsewhere
    folder = Path(hydra_cfg.runtime.output_dir)
    searches = not hydra_cfg.sweeper._target_.endswith(".BasicSweeper")
    raw: Any = OmegaConf.to_container(cfg, resolve=True)
    if DRY_RUN.get():
        list_job(raw, hydra_cfg, searches=searches)
        return None
    try:
        command = command_of(hydra_cfg.overrides.task)
        config = check(raw, folder, command)
        if (twin := find_twin(folder, config)) is not None:
            print(f"{folder}: the same job is {twin.name}", file=sys.stderr)
            folder = twin
        team = Team()
        if not team.leads:
            follow(config, folder, team)
            team.wait()
            return None
        following = next_job(hydra_cfg)
        if following is not None and following.model != config.model:
            read_ahead(following.model)
        try:
            result = run(config, folder, searches, command)
        finally:
            team.tell("end")
        team.wait()
    except Busy:
        print(f"{folder}: another process is running it, skipped", file=sys.stderr)
        return None
    except Exception as error:
        failed.append(folder)
        if (said := sentence(error, folder)) is not None:
            if hydra_cfg.mode == RunMode.RUN:  # nothing follows; Hydra has no line to add
                sys.exit(f"error: {said}")
            print(f"{folder}: failed: {said}", file=sys.stderr)
            forget_locals(error)
            raise LorapError(said) from error
        forget_locals(error)
        raise
    return next((score.perplexity for score in result.scores.perplexity), None)


def command_of(overrides: Sequence[str]) -> str:
    """The command that runs this job alone, in the folder that it has in its sweep."""
    return shlex.join(["python", "-m", "lorap_exp", "hydra.mode=RUN", *overrides])


def list_job(raw: Any, hydra_cfg: Any, *, searches: bool) -> None:
    """`--dry-run`: a job of a sweep under the folder that it would have."""
    if searches:
        sys.exit("error: --dry-run lists the jobs of a sweep; a search chooses them as it goes")
    root = Path(hydra_cfg.runtime.cwd, raw["output_root"], raw["name"])
    preview(raw, root / slug(hydra_cfg.job.override_dirname))


def preview(raw: Any, folder: Path) -> None:
    """`--dry-run`: one line about a job, without running it or leaving anything."""
    from lorap_exp.steps.choose import intention
    from lorap_exp.workspace.state import describe_state, find_twin

    try:
        config = validate(raw)
        twin = find_twin(folder, config)
        state = describe_state(twin or folder, config) + (f" as {twin.name}" if twin else "")
        state += intention(config) if state != "done" else ""
    except LorapError as error:
        state = f"wrong: {error}"
    print(f"{folder}: {state}")


def check(raw: Any, folder: Path, command: str) -> Config:
    """The checked configuration; a wrong one leaves its reason where no job works or has begun."""
    from lorap_exp.workspace.job import record_refusal

    try:
        return validate(raw)
    except LorapError as error:
        if os.environ.get("RANK", "0") == "0":
            record_refusal(folder, raw, command, error)
        raise


def forget_locals(error: BaseException | None) -> None:
    """Let go of the models in an exception's frames: Hydra keeps it until the sweep ends."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def arguments(given: list[str]) -> list[str]:
    """The command line as Hydra takes it, with `-m` in front.

    Raises:
        LorapError: a group without an option, or a key given twice.
    """
    rest = [argument for argument in given if argument not in ("-m", "--multirun", "--dry-run")]
    for argument in rest:
        group, _, option = argument.partition("=")
        if not group.lstrip("+~"):
            raise LorapError(f"a setting is typed as key=value, got '{argument}'")
        if group in (*ORDER[:7], "hydra/launcher") and option in ("", "null"):
            options = ", ".join(options_of(group))
            raise LorapError(f"{group} must be one of {options}, got '{option}'")
        if group == "training":
            raise LorapError(
                f"training belongs to a stage: training@method.stages.layers.training={option}"
            )
    rest = [a for a in rest if a not in ("analysis=null", "experiment=null")]  # the defaults
    rest = prepared(rest)
    if {"-m", "--multirun"} & set(given):
        check_sweeps(rest, options_of)
    return ["--multirun", *rest] if {"-m", "--multirun"} & set(given) else rest


def listing(arguments: list[str], scratch: str) -> list[str]:
    """The same jobs one after the other in this process, where Hydra leaves nothing behind."""
    rest = [a for a in arguments if not re.match(r"\+*hydra([./]launcher|\.(run|sweep)\.dir)", a)]
    folders = [f"hydra.{mode}.dir={scratch}" for mode in ("run", "sweep")]
    return [*rest, "hydra/launcher=basic", *folders]


def launch(dry: bool) -> None:
    """Run the jobs, or list them, and end a sweep in its table."""
    failed.clear()
    if dry:
        token = DRY_RUN.set(True)
        try:
            with tempfile.TemporaryDirectory() as scratch:
                sys.argv[1:] = listing(sys.argv[1:], scratch)
                job()
        finally:
            DRY_RUN.reset(token)
        return
    try:
        job()
    finally:
        close_sweep()
    if failed:  # a search goes on after them
        sys.exit(f"error: {len(failed)} jobs failed; `report` says why")


def main() -> None:
    """Console entry: `lorap-exp` and `python -m lorap_exp`."""
    if set(sys.argv[1:2]) & set(subcommands.COMMANDS):
        subcommands.run(sys.argv[1:])
        return
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(catalogue())
        return
    given = sys.argv[1:]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        sys.argv[1:] = arguments(given)
        launch(dry="--dry-run" in given)
    except BrokenExecutor:
        sys.exit("error: a worker was killed (out of memory?); the same command goes on from here")
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from here")
    except Exception as error:
        if (said := explain(error)) is None:
            raise
        sys.exit(f"error: {said}")
