"""What the walk measures, against plain forward passes of the models that it stands for."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorap_exp.calibration.evidence import Evidence
from lorap_exp.calibration.probes import Probe, to_tensors
from lorap_exp.calibration.stream import Place
from lorap_exp.calibration.walk import Visit, Walk, walk
from lorap_exp.errors import LorapError
from lorap_exp.models.families import Block, blocks_of
from lorap_exp.models.source import Source

Tiny = Callable[..., PreTrainedModel]
NAMES = ("q", "k", "v", "o", "gate", "up", "down")
GROUPS = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))
IDS = torch.arange(5 * 12).view(5, 12) % 200
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def norms(*names: str) -> tuple[Probe, ...]:
    return tuple(Probe(name, "squared_norm") for name in names)


def walked(
    model: PreTrainedModel, visits: Sequence[Visit], how: Walk | None = None
) -> Iterator[tuple[Block, Visit, Evidence]]:
    return walk(Source(model), IDS, visits, how or Walk(2))


@torch.no_grad()
def seen_at(model: PreTrainedModel, place: str, block: int) -> Tensor:
    """Activations at a place in a plain forward pass, (tokens, features)."""
    seen: list[Tensor] = []
    name, _, side = place.partition(":")
    there = blocks_of(model)[block]
    module = there.module if name == "residual" else there.linear(name)

    def keep(_: object, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        found = output[0] if isinstance(output, tuple) else output
        seen.append((found if side else inputs[0]).flatten(0, -2))

    handle = module.register_forward_hook(keep)
    model(IDS)
    handle.remove()
    return seen[0]


def norm_at(model: PreTrainedModel, place: str, block: int) -> Tensor:
    return seen_at(model, place, block).square().sum(0) / len(IDS)


def perturb(block: Block, names: Sequence[str]) -> None:
    """A rewritten block, as far as anything behind it can tell."""
    for name in names:
        block.weight(name).mul_(0.5).add_(0.1 * torch.randn_like(block.weight(name)))


def test_statistics_are_those_of_the_plain_forward_pass(tiny: Tiny, family: str) -> None:
    model = tiny(family)
    names = tuple(blocks_of(model)[0].family.matrices)
    places = (*names, "q:out", "down:out", "residual", "residual:out")
    expected = {(b, place): norm_at(model, place, b) for b in (0, 1) for place in places}
    for block, _, seen in walked(model, [Visit(names, norms(*places))]):
        for place in places:
            found = seen[Probe(place, "squared_norm")]
            torch.testing.assert_close(found, expected[block.index, place], **CLOSE)


@pytest.mark.parametrize("propagation", ["compressed", "original"])
@pytest.mark.parametrize("order", ["block", "group"])
def test_the_next_block_reads_the_asked_for_outputs(
    tiny: Tiny, propagation: str, order: str
) -> None:
    model = tiny()
    dense = norm_at(model, "q", 1)
    blocks = walked(model, [Visit(NAMES, norms("q"))], Walk(2, propagation, order))
    block, _, _ = next(blocks)
    block.weight("down").zero_()
    _, _, seen = next(blocks)
    compressed = norm_at(model, "q", 1)
    expected, other = (compressed, dense) if propagation == "compressed" else (dense, compressed)
    found = seen[Probe("q", "squared_norm")]
    torch.testing.assert_close(found, expected, **CLOSE)
    assert not torch.allclose(found, other, rtol=1e-2)


@pytest.mark.parametrize("order", ["block", "group"])
def test_a_group_is_measured_behind_the_matrices_before_it_or_not(
    tiny: Tiny, family: str, order: str
) -> None:
    """The model as it is at each visit, run plainly, is what `group` sees; `block` sees none."""
    model = tiny(family)
    names = tuple(blocks_of(model)[0].family.matrices)
    groups = [tuple(n for n in group if n in names) for group in GROUPS]
    visits = [Visit(group, norms(*group)) for group in groups]
    before: dict[str, Tensor] = {}
    for block, visit, seen in walked(model, visits, Walk(2, order=order)):
        if visit is visits[0]:
            before = {name: norm_at(model, name, block.index) for name in names}
        for name in visit.names:
            now = norm_at(model, name, block.index)
            found = seen[Probe(name, "squared_norm")]
            torch.testing.assert_close(found, now if order == "group" else before[name], **CLOSE)
            if visit is not visits[0]:
                assert not torch.allclose(now, before[name], rtol=1e-2)
        perturb(block, visit.names)


def test_a_visit_behind_sees_what_was_rewritten_and_the_others_do_not(tiny: Tiny) -> None:
    model = tiny()
    visits = [
        Visit(("q", "k", "v"), norms("q", "k", "v")),
        Visit(("o",), norms("o"), behind=True),
        Visit(("up",), norms("up")),
        Visit(("down",), norms("down"), behind=True),
    ]
    before: dict[str, Tensor] = {}
    for block, visit, seen in walked(model, visits):
        if visit is visits[0]:
            before = {name: norm_at(model, name, block.index) for name in NAMES}
        (probe, *_) = visit.probes
        expected = norm_at(model, probe.at, block.index) if visit.behind else before[probe.at]
        torch.testing.assert_close(seen[probe], expected, **CLOSE)
        perturb(block, visit.names)


def test_the_first_visit_may_be_behind(tiny: Tiny) -> None:
    model = tiny()
    visits = [Visit(("o",), norms("o"), behind=True), Visit(("up",), norms("up"))]
    for block, visit, seen in walked(model, visits):
        (probe,) = visit.probes
        torch.testing.assert_close(seen[probe], norm_at(model, probe.at, block.index), **CLOSE)


def slow_moments(x: Tensor, y: Tensor, what: str) -> dict[str, Tensor]:
    x, y, tokens = x.double(), y.double(), len(x)
    found = {"second": x.mT @ x / tokens, "cross": y.mT @ x / tokens}
    if what == "target_moment":
        found |= {"mean": x.mean(0), "target": y.mean(0), "square": y.square().mean(0)}
    return found


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "opt"])
@pytest.mark.parametrize("propagation", ["compressed", "original"])
@pytest.mark.parametrize("order", ["block", "group"])
@pytest.mark.parametrize("what", ["cross_moment", "target_moment"])
def test_both_streams_are_those_of_two_models(
    tiny: Tiny, name: str, propagation: str, order: str, what: str
) -> None:
    """The original model beside the half-compressed one, both run plainly, at every visit.

    With original inputs, the half-compressed one is the original with this block in its place.
    """
    model = tiny(name, blocks=3)
    original = copy.deepcopy(model)
    names = tuple(blocks_of(model)[0].family.matrices)
    groups = [tuple(n for n in group if n in names) for group in GROUPS]
    visits = [Visit(g, tuple(Probe(n, what, of="both") for n in g)) for g in groups]
    state = model
    for block, visit, seen in walked(model, visits, Walk(2, propagation, order)):
        if order == "group" or visit is visits[0]:
            state = copy.deepcopy(model)
            if propagation == "original":
                for other, dense in zip(blocks_of(state), blocks_of(original), strict=True):
                    if other.index != block.index:
                        other.module.load_state_dict(dense.module.state_dict())
        for probe in visit.probes:
            x = seen_at(state, probe.at, block.index)
            y = seen_at(original, probe.beside, block.index)
            expected = slow_moments(x, y, what)
            found = to_tensors(seen[probe])
            assert set(found) == set(expected)
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, atol=1e-4, rtol=1e-3)
        perturb(block, visit.names)


def test_the_original_alone_can_be_asked_for(tiny: Tiny) -> None:
    model = tiny(blocks=3)
    original = copy.deepcopy(model)
    visits = [Visit(NAMES, (Probe("q", "squared_norm", of="dense"), Probe("q", "squared_norm")))]
    for block, visit, seen in walked(model, visits):
        for probe, reference in zip(visit.probes, (original, model), strict=True):
            torch.testing.assert_close(seen[probe], norm_at(reference, "q", block.index), **CLOSE)
        perturb(block, NAMES)


@pytest.mark.parametrize("order", ["block", "group"])
def test_where_hidden_states_are_kept_changes_nothing(tiny: Tiny, family: str, order: str) -> None:
    found: dict[str, list[Tensor]] = {}
    places: tuple[Place, ...] = ("device", "host", "disk")
    for place in places:
        torch.manual_seed(0)
        model = tiny(family, blocks=3)
        names = tuple(blocks_of(model)[0].family.matrices)
        both = tuple(Probe(name, "cross_moment", of="both") for name in names)
        visits = [Visit(names[:3], norms(*names)), Visit(names[3:], both)]
        for block, visit, seen in walked(model, visits, Walk(2, "compressed", order, place)):
            for probe in visit.probes:
                found.setdefault(place, []).extend(to_tensors(seen[probe]).values())
            perturb(block, visit.names)
    for other in ("host", "disk"):
        pairs = zip(found["device"], found[other], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_nothing_is_left_on_the_model(tiny: Tiny) -> None:
    model = tiny()
    list(walked(model, [Visit(NAMES, norms(*NAMES, "q:out"))]))
    for module in model.modules():
        assert not module._forward_pre_hooks and not module._forward_hooks
        assert "forward" not in vars(module)


def test_a_non_finite_activation_names_block_and_matrix(tiny: Tiny) -> None:
    model = tiny()
    blocks_of(model)[1].weight("up")[0, 0] = float("inf")
    with pytest.raises(LorapError, match="inputs of down in block 1 are not finite"):
        list(walked(model, [Visit(NAMES, norms(*NAMES))]))
    with pytest.raises(LorapError, match="outputs of up in block 1 are not finite"):
        list(walked(model, [Visit(NAMES, norms("up:out"))]))
