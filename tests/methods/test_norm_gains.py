"""Norm gains: nearer to the original model, never further, and nothing where nothing was lost."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from lorap_exp.calibration.divergence import Targets, divergences
from lorap_exp.calibration.walk import Walk
from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.methods.contract import Whole
from lorap_exp.methods.norm_gains import NormGains, current_gains, newton_step
from lorap_exp.methods.stack import build_stack
from lorap_exp.models.source import Source
from tests.methods.stacks import whole

Make = Callable[..., Config]
Tiny = Callable[..., PreTrainedModel]
IDS = torch.randint(1, 200, (12, 16), generator=torch.Generator().manual_seed(0))
STEP = NormGains(steps=2, samples=None, held_out=4, damping=1.0)


def fitted(model: PreTrainedModel, original: PreTrainedModel, folder: Path) -> Whole:
    part = whole(model, IDS, folder, original)
    assert STEP.apply(part, [], None, {}) == ()
    return part


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "opt"])
def test_predictions_come_nearer(tiny: Tiny, tmp_path: Path, family: str) -> None:
    original = tiny(family, blocks=3)
    model = copy.deepcopy(original)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.add_(0.4 * torch.rand(parameter.shape) - 0.1)
    targets = Targets(Source(original), IDS, Walk(4))
    before = divergences(Source(model), targets, Walk(4), [{}])[0]
    part = fitted(model, original, tmp_path)
    after = divergences(part.source, targets, Walk(4), [{}])[0]
    assert after < 0.95 * before
    curve = part.curves["gains"].validation
    assert [point[0] for point in curve] == [0, 1, 2]
    assert curve[0][1] > curve[1][1] >= curve[2][1]


def test_the_original_model_stays_what_it_is(tiny: Tiny, tmp_path: Path) -> None:
    original = tiny()
    model = copy.deepcopy(original)
    before = current_gains(Source(model))
    fitted(model, original, tmp_path)
    after = current_gains(Source(model))
    assert all(torch.allclose(before[name], after[name], atol=1e-3) for name in before)


def test_found_gains_are_not_sought_again(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that was killed while they were put into the model."""
    original = tiny()
    model = copy.deepcopy(original)
    torch.nn.init.constant_(model.model.layers[0].input_layernorm.weight, 1.4)
    other = copy.deepcopy(model)
    fitted(model, original, tmp_path)
    monkeypatch.setattr(NormGains, "_fit", lambda *_: pytest.fail("sought again"))
    fitted(other, original, tmp_path)
    gains = [current_gains(Source(one)) for one in (model, other)]
    assert all(torch.equal(gains[0][name], gains[1][name]) for name in gains[0])


def test_a_step_that_is_not_finite_is_refused() -> None:
    with pytest.raises(LorapError, match="norm gains are not finite"):
        newton_step(torch.tensor([1.0, torch.nan]), torch.ones(2), 1.0)
    step = newton_step(torch.tensor([1.0, -2.0]), torch.tensor([1.0, 3.0]), 0.5)
    torch.testing.assert_close(step, torch.tensor([-0.5, 0.5]))


def test_where_it_stands_in_a_stack(config: Make) -> None:
    """Behind sizes, before training; sizes do not follow it."""
    gains = "+stage@method.stages.gains=norm_gains"
    stack = build_stack(config("method=lorap", gains).method)
    assert [len(group) for group in stack.groups()] == [2, 1]
    more = config("method=lorap", gains, "+stage@method.stages.recovery=distillation")
    assert [len(group) for group in build_stack(more.method).groups()] == [2, 1, 1]
    late = config("method=lorap", gains, "+stage@method.stages.fit=refit")
    with pytest.raises(LorapError, match="must come last, but fit follows gains"):
        build_stack(late.method)
