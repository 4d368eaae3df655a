"""Every criterion finds what it should, on random models."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.evaluation.perplexity import mean_nll
from lorap_exp.methods.streamline.selection import Selection, select
from lorap_exp.models.families import blocks_of
from lorap_exp.models.layout import shortened
from lorap_exp.models.source import Source
from lorap_exp.planning.edits import Drop

Make = Callable[..., Config]
Tiny = Callable[..., PreTrainedModel]
IDS = torch.arange(4 * 24).view(4, 24) % 200


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("cosine", (2, 3)),
        ("angular", (2, 3)),
        ("block_influence", (2, 3)),
        ("fixed", (2, 3)),
        ("deepest", (3, 4)),
    ],
)
def test_layers_that_do_nothing_are_found(
    tiny: Tiny, family: str, criterion: str, expected: tuple[int, ...]
) -> None:
    model = idle(tiny(family, blocks=6))
    start = 2 if criterion == "fixed" else None
    found = choose(model, criterion, start)
    assert found.removed == expected
    assert len(found.map) == 21


def test_scores_that_are_not_finite_choose_nothing(tiny: Tiny) -> None:
    model = tiny(blocks=4)
    blocks_of(model)[1].weight("down").fill_(math.inf)
    for criterion in ("cosine", "angular", "block_influence", "taylor"):
        with pytest.raises(LorapError, match=f"the {criterion} scores of layers .* not finite"):
            choose(model, criterion, None)


@pytest.mark.parametrize("criterion", ["perplexity", "sleb", "taylor"])
def test_scores_by_loss_equal_a_slow_reference(tiny: Tiny, family: str, criterion: str) -> None:
    model = tiny(family, blocks=6)
    found = choose(model, criterion, None)
    scores = dict(found.scores)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    if criterion == "perplexity":
        slow = {i: mean_nll(shortened(model, [Drop((i,))], {}), IDS, 2) for i in (1, 2, 3, 4)}
        assert scores == pytest.approx(slow, abs=1e-4)
        assert found.removed == tuple(sorted(sorted(slow, key=lambda i: slow[i])[:2]))
    elif criterion == "sleb":
        both = mean_nll(shortened(model, [Drop(found.removed)], {}), IDS, 2)
        ones = {i: mean_nll(shortened(model, [Drop((i,))], {}), IDS, 2) for i in (1, 2, 3, 4)}
        first = min(ones, key=lambda i: ones[i])
        (second,) = set(found.removed) - {first}
        assert scores == pytest.approx({first: ones[first], second: both}, abs=1e-4)
    else:
        model.requires_grad_(True)
        model(input_ids=IDS, labels=IDS).loss.backward()
        slow = {
            i: sum(
                float((p * p.grad).detach().abs().sum())
                for p in blocks_of(model)[i].module.parameters()
                if p.grad is not None
            )
            for i in (1, 2, 3, 4)
        }
        assert scores == pytest.approx(slow, rel=1e-3)


def idle(model: PreTrainedModel) -> PreTrainedModel:
    """Layers 2 and 3 hand on their input."""
    with torch.no_grad():
        for index, name in itertools.product((2, 3), ("o", "down")):
            for parameter in blocks_of(model)[index].linear(name).parameters():
                parameter.zero_()
    return model


def choose(model: PreTrainedModel, criterion: Any, start: int | None) -> Selection:
    return select(
        Source(model), IDS, 2, criterion=criterion, protect=(1, 1), start=start, batch_size=2
    )
