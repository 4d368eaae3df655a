"""A plan is a fold of edits over shapes, and its JSON is enough to do it again."""

import json

import pytest

from lorap_exp.planning.edits import (
    EDITS,
    Bias,
    Branch,
    Drop,
    Edit,
    Factor,
    Insert,
    Merge,
    Plan,
    Quantised,
    Resize,
    Slice,
)
from lorap_exp.planning.shapes import BlockShape, MatrixShape, Shape

SIZES = {"q": (64, 64), "k": (32, 64), "v": (32, 64), "o": (64, 64)}
SIZES |= {"gate": (176, 64), "up": (176, 64), "down": (64, 176)}
MATRICES = {name: MatrixShape(name, *size) for name, size in SIZES.items()}
DENSE = Shape(tuple(BlockShape(index, MATRICES, 2) for index in range(6)))
LAYER = DENSE.blocks[0].parameters
EVERY: list[tuple[Edit, int]] = [
    (Factor(0, "q", 8), 64 * 64 - 8 * 128),
    (Factor(0, "q", 8, "pivoted"), 64 * 64 - 8 * (128 - 8)),
    (Factor(0, "q", None), 0),
    (Resize(1, "ffn", 100), 76 * 3 * 64),
    (Resize(1, "heads", 1), LAYER // 2 - 3 * 176 * 64 // 2),
    (Resize(1, "query", 10), (64 - 40 + 32 - 20) * 64),
    (Resize(1, "value", 10), (32 - 20 + 64 - 40) * 64),
    (Bias(2, "down"), -64),
    (Branch(2, 4), -2 * 4 * 64),
    (Drop((1, 4)), 2 * LAYER),
    (Merge((2, 3), into=1, cosine=0.9, threshold=0.7), 2 * LAYER),
    (Insert(1, 4, "transformer"), 2 * LAYER),
    (Insert(1, 4, "ffn"), 3 * LAYER - 8 * 64**2 - 5 * 64),
    (Insert(1, 4, "swiglu", residual=True), 3 * LAYER - 3 * 64 * 176),
    (Insert(1, 4, "linear"), 3 * LAYER - 64**2),
    (Slice(48), 6 * (LAYER // 4 - 2 * 48**2)),
    (Quantised(1, "gptq", 32), 0),
]
"""Every kind of edit, and how many parameters it takes off."""


def test_every_kind_is_here() -> None:
    assert {type(edit).__name__ for edit, _ in EVERY} == set(EDITS)


@pytest.mark.parametrize(("edit", "removed"), EVERY)
def test_each_edit_counts(edit: Edit, removed: int) -> None:
    assert DENSE.parameters - edit.on(DENSE).parameters == removed


@pytest.mark.parametrize(("edit", "removed"), EVERY)
def test_each_edit_survives_json(edit: Edit, removed: int) -> None:
    plan = Plan(0.3, (edit,))
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert plan.shape(DENSE).parameters == DENSE.parameters - removed


def test_a_plan_folds_its_edits_in_order() -> None:
    edits: list[Edit] = [Insert(1, 3, "transformer"), Drop((4,)), Resize(0, "ffn", 88)]
    edits += [Factor(0, "up", 5), Factor(0, "q", 8), Bias(5, "o"), Slice(32)]
    plan = Plan(0.4) + edits
    shape = plan.shape(DENSE)
    assert [block.index for block in shape.blocks] == [0, 1, 3, 5]
    assert plan.removed_layers == (1, 2, 4)
    first = shape.by_index[0]
    assert (first.size("ffn"), first.hidden, first.matrices["up"].rank) == (88, 32, 5)
    assert first.matrices["up"].parameters == 5 * (88 + 32)
    assert shape.by_index[1].kind == "transformer"
    assert shape.by_index[5].matrices["o"].parameters == 32 * 64 + 32
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))).shape(DENSE) == shape


def test_a_matrix_can_be_made_dense_again() -> None:
    plan = Plan(0.4, (Factor(0, "q", 8), Factor(0, "q", None)))
    assert plan.shape(DENSE) == DENSE


def test_a_network_in_place_of_layers_cannot_be_sliced() -> None:
    plan = Plan(0.4, (Insert(1, 3, "ffn"), Slice(32)))
    with pytest.raises(ValueError, match="network of kind ffn replaces layers .from layer 1."):
        plan.shape(DENSE)
