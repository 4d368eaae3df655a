"""Every configuration composes, checks, and builds its stages."""

from pathlib import Path

import pytest

from lorap_exp.commands.catalogue import ORDER, catalogue, conf_folder
from lorap_exp.config import validate
from lorap_exp.errors import LorapError
from lorap_exp.methods.stack import build_stack
from tests.conftest import compose

GROUPS = ["model", "method", "calibration", "evaluation", "data", "logging", "experiment"]
OPTIONS = [
    (group, str(path.relative_to(conf_folder() / group).with_suffix("")))
    for group in GROUPS
    for path in sorted((conf_folder() / group).rglob("*.yaml"))
]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_builds(group: str, option: str) -> None:
    if option.startswith("search/"):
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra optuna")
    needed = {"custom": ["model.path=some/where"], "text": ["calibration.files=[a.txt]"]}
    extra = needed.get(option, [])
    cfg = validate(compose([f"{group}={option}", *extra]))
    stack = build_stack(cfg.method)
    assert stack.steps or cfg.ratio == 0 or cfg.choose.candidates


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_is_in_the_catalogue(group: str, option: str) -> None:
    line = next(line for line in catalogue().splitlines() if line.startswith(f"  {option} "))
    assert len(line.split(maxsplit=1)[1]) > 10


def test_the_catalogue_knows_every_group() -> None:
    folders = {path.name for path in conf_folder().iterdir() if path.is_dir()}
    assert folders - {"stage", "hydra"} == set(ORDER)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ratio=1.2"], r"ratio must lie in \[0, 1\), got 1.2"),
        (["ratio=-0.1"], r"ratio must lie in \[0, 1\), got -0.1"),
        (["ratio=nan"], "ratio must be a finite number, got nan"),
        (["ratio=much"], "ratio must be a number, got 'much'"),
        (["device=tpu"], "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["dtype=int8"], "dtype must be one of .*'bfloat16'.* got 'int8'"),
        (["calibration.samples=0"], "calibration.samples must be greater .* 1, got 0"),
        (["evaluation.zero_shot.form=fast"], "zero_shot.form must be one of 'auto'.* 'fast'"),
        (["+calibration.typo=1"], "calibration.typo is not a setting"),
        (["data=local", "data.folder=null"], "folder must be set when source is local"),
        (["model.path=null"], "path must be a hub id or a local folder"),
        (["calibration=text"], "files must name at least one file"),
        (["analysis=spectrum", "analysis.metrics=[]"], "analysis.metrics .* at least 1 item"),
        (["~dtype"], "^dtype must be set$"),
    ],
)
def test_wrong_values_are_one_sentence(overrides: list[str], message: str) -> None:
    with pytest.raises(LorapError, match=message) as caught:
        validate(compose(overrides))
    assert "\n" not in str(caught.value)


def test_stage_files_hold_every_field(tmp_path: Path) -> None:
    """A default is written once, in conf/stage: so each field can be overridden by name."""
    from dataclasses import fields

    import yaml
    from hydra.utils import get_class

    for path in (conf_folder() / "stage").glob("*.yaml"):
        settings = yaml.safe_load(path.read_text())
        groups = [entry for entry in settings.pop("defaults", []) if isinstance(entry, dict)]
        settings |= {name.partition("@")[2]: option for e in groups for name, option in e.items()}
        names = {field.name for field in fields(get_class(settings.pop("_target_")))}
        assert names == set(settings), path
