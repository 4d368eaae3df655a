"""Gradients block by block, against autograd through the whole model."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorap_exp.calibration.gradients import gradient_walk
from lorap_exp.calibration.probes import Probe
from lorap_exp.calibration.survey import survey
from lorap_exp.calibration.walk import Walk
from lorap_exp.errors import LorapError
from lorap_exp.models.families import blocks_of
from lorap_exp.models.source import Source
from tests.methods.stacks import no_bars

Tiny = Callable[..., PreTrainedModel]
IDS = torch.arange(5 * 12).view(5, 12) % 200
FAMILIES = ["llama", "gemma3_text", "opt", "phi3"]


def close(found: Tensor, expected: Tensor) -> None:
    difference = (found.double() - expected.double()).norm() / expected.double().norm()
    assert difference < 1e-4


def autograd(model: PreTrainedModel) -> tuple[dict[tuple[int, str], Tensor], ...]:
    """Of the summed next-token loss, all sequences at once: weights' and outputs' gradients."""
    outputs: dict[tuple[int, str], Tensor] = {}
    blocks = blocks_of(model)
    places = [(block, name) for block in blocks for name in block.family.matrices]
    hooks = []
    for block, name in places:

        def keep(_: object, __: object, output: Tensor, at: object = (block.index, name)) -> None:
            output.retain_grad()
            outputs[at] = output

        hooks.append(block.linear(name).register_forward_hook(keep))
    model.requires_grad_(True)
    logits = model(input_ids=IDS, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten(), reduction="sum"
    )
    loss.backward()
    for hook in hooks:
        hook.remove()
    weights = {(b.index, n): b.weight(n).grad.clone() for b, n in places}  # type: ignore[union-attr]
    gradients = {at: output.grad.flatten(0, -2) for at, output in outputs.items()}  # type: ignore[union-attr]
    model.zero_grad()
    model.requires_grad_(False)
    return weights, gradients


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_of_autograd(tiny: Tiny, name: str) -> None:
    """Means over all tokens of the calibration set, whatever the batches."""
    model = tiny(name, blocks=3)
    weights, outputs = autograd(model)
    names = tuple(blocks_of(model)[0].family.matrices)
    probes = {Probe(n, what) for n in names for what in ("weight_gradient", "gradient_moment")}
    numbers = []
    for number, values in gradient_walk(Source(model), IDS, probes, Walk(2)):
        numbers.append(number)
        for matrix in names:
            weight = values[Probe(matrix, "weight_gradient")]
            close(weight, weights[number, matrix] / IDS.numel())
            g = outputs[number, matrix].double()
            close(values[Probe(matrix, "gradient_moment")], g.mT @ g / IDS.numel())
    assert numbers == [2, 1, 0], "from the last block to the first"
    for module in model.modules():
        assert not module._forward_hooks and "forward" not in vars(module)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("place", ["host", "disk"])
def test_where_hidden_states_are_kept_changes_nothing(tiny: Tiny, place: str) -> None:
    model, probes = tiny(), {Probe("q", "weight_gradient"), Probe("up", "gradient_moment")}
    one, other = (
        dict(gradient_walk(Source(model), IDS, probes, Walk(2, place=where)))  # type: ignore[arg-type]
        for where in ("device", place)
    )
    for number, values in one.items():
        assert all(torch.equal(values[probe], other[number][probe]) for probe in probes)


def test_a_survey_has_both_passes(tiny: Tiny) -> None:
    model = tiny()
    weights, _ = autograd(model)
    probes = [Probe("k", "weight_gradient"), Probe("q", "weight_gradient"), Probe("k", "variance")]
    seen = survey(Source(model), IDS, probes, Walk(2), sharing=None, bars=no_bars)
    for block in blocks_of(model):
        for name in "qk":
            found = seen[block.index][Probe(name, "weight_gradient")]
            close(found, weights[block.index, name] / IDS.numel())
        assert seen[block.index][Probe("q", "variance")].mean.shape == (64,)


def test_a_gradient_that_is_not_finite_is_named(tiny: Tiny) -> None:
    model = tiny()
    blocks_of(model)[1].weight("down")[0, 0] = float("nan")
    with pytest.raises(LorapError, match="gradients of q in block 1 are not finite"):
        list(gradient_walk(Source(model), IDS, {Probe("q", "weight_gradient")}, Walk(2)))
