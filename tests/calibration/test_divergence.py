"""Gradients of norm gains and divergences block by block, against the whole model at once."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax
from transformers import PreTrainedModel

from lorap_exp.calibration.divergence import (
    Targets,
    divergences,
    final_norm,
    gain_gradients,
    holding,
    norms_of,
)
from lorap_exp.calibration.gradients import drawn
from lorap_exp.calibration.walk import Walk
from lorap_exp.models.families import blocks_of
from lorap_exp.models.source import Source

Tiny = Callable[..., PreTrainedModel]
IDS = torch.arange(5 * 12).view(5, 12) % 200
FAMILIES = ["llama", "gemma3_text", "opt", "phi3"]


def pair(tiny: Tiny, family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model and the same one disturbed."""
    model = tiny(family, blocks=3)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for block in blocks_of(other):
            block.weight("down").mul_(0.5)
    return model, other


def divergence(model: PreTrainedModel, other: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        before = log_softmax(model(IDS, use_cache=False).logits, -1)
    after = log_softmax(other(IDS, use_cache=False).logits, -1)
    return (before.exp() * (before - after)).sum()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_autograd(tiny: Tiny, family: str) -> None:
    model, other = pair(tiny, family)
    source = Source(other)
    sums = gain_gradients(source, Targets(Source(model), IDS, Walk(2)), Walk(2), {})
    norms = final_norm(source)
    for block in source.blocks:
        norms |= norms_of(block)
    assert set(sums.gradients) == set(norms) and len(norms) >= 5
    for norm in norms.values():
        norm.weight.requires_grad_(True)
    divergence(model, other).backward()
    for name, norm in norms.items():
        expected = norm.weight.grad
        assert isinstance(expected, Tensor)
        torch.testing.assert_close(sums.gradients[name], expected, rtol=1e-3, atol=1e-4)


def test_squares_are_of_each_token_by_itself(tiny: Tiny) -> None:
    """One gain a token instead of one for all: the squares of its gradients, summed."""
    model, other = pair(tiny, "llama")
    source = Source(other)
    sums = gain_gradients(source, Targets(Source(model), IDS, Walk(5)), Walk(5), {})
    norm = norms_of(source.blocks[1])["1.input_layernorm"]
    each = torch.zeros(5, 12, 64, requires_grad=True)

    def spread(module: torch.nn.Module, _: object, output: Tensor) -> Tensor:
        return output + output.detach() / module.weight * each

    hook = norm.register_forward_hook(spread)
    logits = other(IDS, use_cache=False).logits.flatten(0, 1)
    hook.remove()
    cross_entropy(logits, drawn(logits.detach()), reduction="sum").backward()
    assert each.grad is not None
    expected = each.grad.flatten(0, 1).square().sum(0)
    torch.testing.assert_close(sums.squares["1.input_layernorm"], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_divergences_of_several_gains_at_once(tiny: Tiny, family: str) -> None:
    model, other = pair(tiny, family)
    source = Source(other)
    norms = final_norm(source) | norms_of(source.blocks[0])
    held = {name: norm.get_parameter("weight").detach().clone() for name, norm in norms.items()}
    larger = {name: 1.3 * weight for name, weight in held.items()}
    targets = Targets(Source(model), IDS, Walk(2))
    found = divergences(source, targets, Walk(2), [{}, larger])
    with torch.no_grad():
        expected = [float(divergence(model, other)) / IDS.numel()]
        with holding(norms, larger):
            expected.append(float(divergence(model, other)) / IDS.numel())
    assert found == pytest.approx(expected, rel=1e-4)
    assert divergences(Source(model), targets, Walk(2), [{}]) == pytest.approx([0], abs=1e-6)
    assert all(torch.equal(norm.get_parameter("weight"), held[n]) for n, norm in norms.items())
