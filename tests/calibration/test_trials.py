"""Damage of each block alone, measured in one pass: the same as changing the model and back."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from lorap_exp.calibration.trials import STRIDE, trial_walk
from lorap_exp.calibration.walk import Walk
from lorap_exp.models.families import Block, blocks_of
from lorap_exp.models.source import Source

IDS = torch.randint(0, 250, (6, 16), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def halve(block: Block) -> None:
    block.linear("down").weight.mul_(0.5)
    block.linear("o").weight.mul_(0.5)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "opt", "falcon", "bloom"])
@pytest.mark.parametrize("batch_size", [2, 4, 6])
def test_each_block_alone(
    tiny: Callable[..., PreTrainedModel], family: str, batch_size: int
) -> None:
    model = tiny(family, blocks=3)
    before = model(IDS).logits[:, ::STRIDE].log_softmax(-1)
    found = trial_walk(Source(model), IDS, lambda _: [halve], Walk(batch_size), iter)
    assert torch.equal(model(IDS).logits[:, ::STRIDE].log_softmax(-1), before), "not changed"
    assert set(found) == {0, 1, 2}
    for block in blocks_of(model):
        kept = {name: block.weight(name).clone() for name in ("down", "o")}
        halve(block)
        after = model(IDS).logits[:, ::STRIDE].log_softmax(-1)
        expected = (before.exp() * (before - after)).sum(-1).mean()
        assert found[block.index] == [pytest.approx(float(expected), rel=1e-3, abs=1e-7)]
        for name, weight in kept.items():
            block.linear(name).weight.copy_(weight)
