from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from lorap_exp.calibration.statistics import SquaredNorm
from lorap_exp.calibration.walk import walk
from lorap_exp.errors import LorapError
from lorap_exp.models.families import blocks_of

Tiny = Callable[..., PreTrainedModel]
NORMS = {name: {"norm": SquaredNorm} for name in ("q", "k", "v", "o", "gate", "up", "down")}
IDS = torch.arange(5 * 12).view(5, 12) % 200


def inputs_of(model: PreTrainedModel, name: str, block: int) -> torch.Tensor:
    seen = []
    linear = blocks_of(model)[block].linear(name)
    handle = linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(IDS)
    handle.remove()
    return seen[0].view(5, 12, -1)


def test_statistics_are_those_of_the_plain_forward_pass(tiny: Tiny, family: str) -> None:
    model = tiny(family)
    expected = {
        (block, name): inputs_of(model, name, block).square().sum((0, 1)) / 5
        for block in (0, 1)
        for name in blocks_of(model)[0].family.matrices
    }
    for block, statistics in walk(model, IDS, NORMS, batch_size=2, propagation="compressed"):
        for name in block.family.matrices:
            torch.testing.assert_close(
                statistics[name, "norm"], expected[block.index, name], rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("propagation", ["compressed", "original"])
def test_the_next_block_reads_the_asked_for_outputs(tiny: Tiny, propagation: str) -> None:
    model = tiny()
    dense = inputs_of(model, "q", 1).square().sum((0, 1)) / 5
    blocks = walk(model, IDS, NORMS, batch_size=2, propagation=propagation)
    block, _ = next(blocks)
    block.weight("down").zero_()
    _, statistics = next(blocks)
    compressed = inputs_of(model, "q", 1).square().sum((0, 1)) / 5
    expected, other = (compressed, dense) if propagation == "compressed" else (dense, compressed)
    torch.testing.assert_close(statistics["q", "norm"], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(statistics["q", "norm"], other, rtol=1e-2)


def test_nothing_is_left_on_the_model(tiny: Tiny) -> None:
    model = tiny()
    list(walk(model, IDS, NORMS, 2, "compressed"))
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)


def test_a_non_finite_activation_names_block_and_matrix(tiny: Tiny) -> None:
    model = tiny()
    blocks_of(model)[1].weight("up")[0, 0] = float("inf")
    with pytest.raises(LorapError, match="inputs of down in block 1 are not finite"):
        list(walk(model, IDS, NORMS, 2, "compressed"))
