"""`_target_` names a class of the contract; nothing else is called, whatever it is."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lorap_exp.commands.catalogue import conf_folder
from lorap_exp.config import validate
from lorap_exp.errors import LorapError
from lorap_exp.methods.contract import Step
from lorap_exp.methods.stack import build_stack
from lorap_exp.methods.targets import find_method_class
from tests.conftest import TINY, compose


@pytest.mark.parametrize("path", sorted((conf_folder() / "stage").glob("*.yaml")), ids=str)
def test_every_stage_of_the_tree_is_one(path: Path) -> None:
    assert find_method_class(yaml.safe_load(path.read_text())["_target_"], Step)


@pytest.mark.parametrize(
    "target",
    [
        "subprocess.Popen",
        "os.system",
        "builtins.eval",
        "pathlib.Path",
        "lorap_exp.methods.stack.build_stack",
        "lorap_exp.methods.stack.Stack",
        "lorap_exp.methods.contract",
        "lorap_exp.methods.low_rank",
        "lorap_exp.methods.low_rank.LowRak",
        "lorap_exp.planning.edits.Plan",
        "torch.nn.Linear",
        "no.such.module",
        "LowRank",
        "",
        " ",
        "a..b",
        "a b.c",
        "../x.y",
        "os.path:join",
        None,
        3,
        ["a"],
    ],
)
def test_anything_else_is_refused_before_it_is_called(target: Any) -> None:
    with pytest.raises(LorapError, match="x._target_ must name a class") as caught:
        find_method_class(target, Step, "x._target_")
    assert "\n" not in str(caught.value)


def test_a_module_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('two\\nlines')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LorapError, match="RuntimeError: two lines"):
        find_method_class("broken_plugin.Stage", Step)


def test_no_command_runs(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    cfg = validate(
        compose(
            [
                *TINY,
                "method.stages.attention._target_=subprocess.Popen",
                f"+method.stages.attention.args=[touch,{mark}]",
            ]
        )
    )
    with pytest.raises(LorapError, match="method.stages.attention._target_ must name a class"):
        build_stack(cfg.method)
    assert not mark.exists()
