"""Bytes of a plan and of the folder that it becomes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorap_exp import pipeline
from lorap_exp.config import Config
from lorap_exp.models.loading import load_config
from lorap_exp.models.sizes import planned_bytes, stored_bytes
from lorap_exp.planning.edits import Plan


@pytest.mark.parametrize("form", ["factored", "dense"])
@pytest.mark.parametrize("family", ["llama", "opt", "gemma3_text"])
@pytest.mark.parametrize("method", ["lorap", "streamline_none", "slicegpt"])
def test_planned_bytes_are_those_of_the_saved_model(
    tmp_path: Path, config: Callable[..., Config], family: str, method: str, form: str
) -> None:
    if method == "slicegpt" and family != "llama":
        pytest.skip("slicegpt refuses the family")
    asked = [f"model.random.family={family}", f"method={method}", f"export={form}", "ratio=0.5"]
    cfg = config(*asked, "evaluation.zero_shot=null", "dtype=bfloat16")
    result = pipeline.run(cfg, tmp_path)
    planned = planned_bytes(result.plan, load_config(cfg.model), torch.bfloat16, form)
    assert planned == stored_bytes(tmp_path / "model")


def test_a_dense_plan_is_the_dense_model(tmp_path: Path, config: Callable[..., Config]) -> None:
    cfg = config("method=dense", "evaluation.zero_shot=null")
    result = pipeline.run(cfg, tmp_path)
    planned = planned_bytes(Plan(0.0), load_config(cfg.model), torch.float32, "factored")
    assert planned == stored_bytes(tmp_path / "model")
    assert planned == 4 * result.parameters["dense"]["total"]
