"""Closed-form replacements."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from lorap_exp.config import Config
from lorap_exp.methods.streamline.linear import closed_form
from lorap_exp.methods.streamline.removal import LayerRemoval
from lorap_exp.models.families import blocks_of
from lorap_exp.planning.edits import Drop
from lorap_exp.planning.spans import divide
from tests.methods.stacks import rewrite_whole, stack_of, step_of

Make = Callable[..., Config]
Tiny = Callable[..., PreTrainedModel]
IDS = torch.arange(4 * 24).view(4, 24) % 200


def test_the_relative_fit_minimises_the_relative_error() -> None:
    """No step away from it lowers the loss that training calls nmse."""
    torch.manual_seed(0)
    x, y = torch.randn(2, 4, 30, 6, dtype=torch.float64)
    target = 3 * y + torch.randn_like(y)
    target[0, 0] *= 100
    found = closed_form([(x, y, target)], 0.0, "nmse")

    def loss(B: torch.Tensor) -> float:
        errors, norms = (v.square().sum(-1) for v in (x @ B - y, target))
        return float((errors / norms).mean() + errors.sum() / norms.sum())

    best = loss(found)
    for _ in range(20):
        assert loss(found + 0.01 * torch.randn_like(found)) > best
    assert loss(closed_form([(x, y, target)], 0.0, "mse")) > best


@pytest.mark.parametrize(
    "form", list(itertools.product(["linear", "linear_merged"], ["mse", "nmse"]))
)
@pytest.mark.parametrize("family_", ["llama", "opt"])
def test_a_linear_map_is_found_where_there_is_one(
    tiny: Tiny, config: Make, tmp_path: Path, form: tuple[str, str], family_: str
) -> None:
    """The span scales its input (or what the MLP before it adds): the closed form finds that."""
    replacement, fit = form
    model = tiny(family_, blocks=4)
    with torch.no_grad():
        for name in ("o", "down"):
            for parameter in blocks_of(model)[2].linear(name).parameters():
                parameter.zero_()
    stack = stack_of(
        config,
        "method=streamline",
        f"method.stages.layers.replacement={replacement}",
        "method.stages.layers.ridge=1e-8",
        f"method.stages.layers.fit={fit}",
    )
    step = step_of(stack, "layers")
    assert isinstance(step, LayerRemoval)
    edits = divide(2, 3, step.kind, 1, False)
    assert replacement == "linear" or edits == [Drop((2,))]
    expected = model(IDS).logits
    part = rewrite_whole(step, model, edits, torch.randint(1, 200, (16, 24)), tmp_path)
    short = part.model
    torch.testing.assert_close(short(IDS).logits, expected, atol=1e-3, rtol=1e-3)
    assert not part.curves
    assert len(blocks_of(short)) == (3 if replacement == "linear_merged" else 4)
