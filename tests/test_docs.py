"""Every command of the README, the documentation and the experiments can be run as it stands."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import hydra
import pytest
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from lorap_exp import pipeline
from lorap_exp.commands import settings
from lorap_exp.commands.catalogue import catalogue, conf_folder, experiments_page
from lorap_exp.commands.report import show
from lorap_exp.commands.subcommands import COMMANDS, parser, run
from lorap_exp.config import Config, validate
from lorap_exp.methods.stack import build_stack
from tests.conftest import REPOSITORY, TINY, compose

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SHORT = "data=local data.folder=../shared/data logging=disabled"
"""What docs/results.md calls D."""
NEEDED = {"model=custom": ["model.path=some/where"], "calibration=text": ["calibration.files=[a]"]}


def commands() -> Iterator[tuple[str, str]]:
    """(page, command without `python -m lorap_exp`) of every line that starts like that."""
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").replace("\\\n", "").splitlines():
            found = re.match(r"^(?:- )?(?:\S+ )*?(?:`)?python -m lorap_exp ([^`#]*)", line)
            if found and "$" not in line and "…" not in line and "<" not in line:
                for command in found[1].split("; python -m lorap_exp "):
                    yield page.name, re.sub(r"\bD\b", SHORT, command).strip()


COMMANDS_FOUND = sorted(set(commands()))


def test_the_pages_hold_commands() -> None:
    assert len(COMMANDS_FOUND) > 40


@pytest.mark.parametrize(("page", "command"), COMMANDS_FOUND)
def test_a_documented_command_composes(page: str, command: str) -> None:
    """Subcommands parse; of a sweep, the first job is composed, checked and built."""
    words = shlex.split(command)
    if words[0] in COMMANDS:
        parser().parse_args(words)
        return
    if words == ["--help"]:
        return
    if "hydra/launcher=ray" in command:
        pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="the extra ray is not there")
    overrides = [word for word in words if word not in ("-m", "--dry-run")]
    config = first_job(overrides)
    for group, extra in NEEDED.items():
        config = first_job([*overrides, *extra]) if group in overrides else config
    stack = build_stack(config.method)
    assert stack.steps or config.ratio == 0 or config.choose.candidates


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), COMMANDS_FOUND)
def test_a_documented_command_runs(
    request: pytest.FixtureRequest, tmp_path: Path, page: str, command: str
) -> None:
    """Its first job, on a random model and few texts, to its report; subcommands after that."""
    words = shlex.split(command)
    request.getfixturevalue("monkeypatch").chdir(tmp_path)
    if words[1:2] == ["fetch"]:
        pytest.skip("asks the hub: tests/data and tests/models put another in its place")
    if words[:1] == ["--help"]:
        assert "experiment" in catalogue()
        return
    if "hydra/launcher=ray" in command:
        pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="the extra ray is not there")
    if words[0] not in COMMANDS:
        overrides = [word for word in words if word not in ("-m", "--dry-run")]
        extra = [e for group, more in NEEDED.items() if group in overrides for e in more]
        cfg = shrink(first_job([*overrides, *extra]), tmp_path)
        result = pipeline.run(cfg, tmp_path / "outputs" / cfg.name / "job")
        assert result.scores.perplexity
        show([tmp_path / "outputs" / cfg.name])
        return
    for name in re.findall(r"outputs/([\w/=.]+)", command):
        cfg = shrink(first_job(["evaluation=perplexity"]), tmp_path)
        pipeline.run(cfg, tmp_path / "outputs" / name)
    if words[0] == "store":
        Path("outputs").mkdir(exist_ok=True)
    if words[:2] == ["data", "verify"]:
        (tmp_path / "data").symlink_to(request.getfixturevalue("shared") / "data")
    run(words)


def shrink(cfg: Config, folder: Path) -> Config:
    """The same job on a random model and the embedded texts, short in everything."""
    raw = cfg.dump()
    small = compose([*TINY, "evaluation=perplexity"])
    raw |= {key: small[key] for key in ("model", "data", "logging", "dtype", "device")}
    raw["model"]["random"] |= {"blocks": 8, "intermediate_size": 192}
    raw["store"]["folder"] = str(folder / "store")
    texts = {"text": "embedded", "split": "train"}
    raw["calibration"] |= texts | {"samples": 8, "length": 32, "files": []}
    for section in ("perplexity", "zero_shot", "generation"):
        scored = {"max_tokens": 512, "profile": "lorap", "texts": ["wikitext2", "ptb"]}
        less = {"perplexity": scored, "zero_shot": {"limit": 2}}
        if raw["evaluation"][section] is not None:
            raw["evaluation"][section] |= less.get(section, {"samples": 2, "words": 8})
    if raw["evaluation"]["efficiency"] is not None:
        raw["evaluation"]["efficiency"] |= {"prompt": 8, "tokens": 4, "repeats": 2}
    goals = {"bytes": 1_200_000, "perplexity": 300.0}
    raw["target"] |= {name: goals[name] for name, goal in raw["target"].items() if goal is not None}
    raw["choose"] |= {"samples": None, "held_out": 4}
    steps = {"samples": 12, "validation_samples": 4, "max_steps": 2, "batch_size": 4}
    for stage in raw["method"]["stages"].values():
        if stage is not None and "training" in stage:
            stage["training"] |= texts | steps | {"length": 16, "micro_batch": 4}
            stage["num_layers"] = None
        if stage is not None and "cutoff" in stage:
            stage.update(texts | steps | {"cutoff": 16, "micro_batch": 4, "rank": 2})
    return validate(raw)


def first_job(overrides: list[str]) -> Config:
    """The checked configuration of the first job that a command line stands for."""
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        swept = hydra.compose("config", plain(overrides), return_hydra_config=True)
        params = swept.hydra.sweeper.get("params") or {}
        chosen = {word.split("=", 1)[0] for word in overrides}
        grid = [f"{key}={value}" for key, value in params.items() if key not in chosen]
        job = BasicSweeper.split_arguments(parse([*overrides, *grid]), max_batch_size=None)[0][0]
        cfg = hydra.compose("config", list(job))
    return validate(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]


def parse(overrides: list[str]):  # type: ignore[no-untyped-def]
    return OverridesParser.create().parse_overrides(overrides)


def plain(overrides: list[str]) -> list[str]:
    """The first value of every sweep."""
    return list(BasicSweeper.split_arguments(parse(overrides), max_batch_size=None)[0][0])


def test_the_page_of_experiments_is_up_to_date() -> None:
    page = (REPOSITORY / "docs" / "experiments.md").read_text(encoding="utf-8")
    assert page == experiments_page(), "run `make docs`"


def test_the_page_of_settings_is_up_to_date() -> None:
    text = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    assert text == settings.page(), "run `make docs`"
    for said in ("| `calibration.samples` | whole number >= 1 | `128` |", "### LorapPlus"):
        assert said in text


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_method_of_the_page_on_extending_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very code of docs/extending.md, from plan to scores."""
    page = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n# my_method.py\n(.*?)```", page, re.DOTALL)
    (settings,) = re.findall(r"```yaml\n# conf/method/keep_varying.yaml\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) < 100
    (tmp_path / "my_method.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    raw = compose([*TINY, "evaluation=perplexity", "evaluation.perplexity.max_tokens=512"])
    raw |= {"method": yaml.safe_load(settings), "ratio": 0.3}
    raw["store"]["folder"] = str(tmp_path / "store")
    raw["calibration"] |= {"samples": 8, "length": 32}
    result = pipeline.run(validate(raw), tmp_path / "job")
    assert result.kept < 1
    assert all(block.matrices["down"].bias for block in result.planned.blocks)
