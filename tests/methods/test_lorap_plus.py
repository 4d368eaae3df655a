"""lorap_plus: planned is measured, exact where nothing goes, better than its parts at random."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from lorap_exp.calibration.survey import survey
from lorap_exp.calibration.walk import Walk
from lorap_exp.config import Config
from lorap_exp.methods.lorap_plus.curves import modules_of
from lorap_exp.methods.lorap_plus.step import LorapPlus
from lorap_exp.methods.lorap_plus.trials import Response, spend
from lorap_exp.methods.stack import Stack, build_stack
from lorap_exp.models.checkpoint import check_reload, save
from lorap_exp.models.source import Source
from lorap_exp.models.tiny import byte_tokenizer
from lorap_exp.planning.edits import Factor, Plan, Resize
from tests.methods.stacks import compress, planned, rebuilt, shape_of, step_of
from tests.methods.test_joint_methods import IDS, weights

Make = Callable[..., Config]
Tiny = Callable[..., PreTrainedModel]
SHAPES = {"llama": 4, "qwen2": 2, "gemma3_text": 2, "opt": 4}


def stack(config: Make) -> Stack:
    return build_stack(config("method=lorap_plus").method)


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_planned_parameters_are_measured_saved_and_reloaded(
    tiny: Tiny, config: Make, tmp_path: Path, family: str, ratio: float
) -> None:
    model = tiny(family, kv_heads=SHAPES[family])
    dense, before = shape_of(model), weights(model)
    plan = compress(model, stack(config), ratio, IDS, Walk(4))
    short = rebuilt(model, plan)
    removed = dense.parameters - plan.shape(dense).parameters
    assert before - weights(short) == removed
    assert removed >= ratio * dense.parameters - 1
    assert removed == pytest.approx(ratio * dense.parameters, rel=0.12)
    save(short, byte_tokenizer(), tmp_path / "model")
    check_reload(short, tmp_path / "model", IDS[:2])


def test_without_evidence_as_many_parameters_go(tiny: Tiny, config: Make) -> None:
    model = tiny(blocks=4)
    dense = shape_of(model)
    even = planned(stack(config), model, 0.4).shape(dense).parameters
    done = compress(model, stack(config), 0.4, IDS).shape(dense).parameters
    assert done == pytest.approx(even, rel=0.05)


def test_nothing_removed_changes_nothing(tiny: Tiny, config: Make) -> None:
    """Heads rotated and channels kept whole, refits on unchanged inputs: the same function."""

    class Whole(LorapPlus):
        def plan(self, shape, ratio, seen, alone=True):  # type: ignore[no-untyped-def]
            return [
                Resize(block.index, space, block.size(space))
                for block in shape.blocks
                for space in ("values", "ffn")
            ]

    model = tiny("qwen2", kv_heads=2)
    expected = model(IDS).logits
    compress(model, Stack((("all", Whole(0.5, 0.3, 0.3, None, 4, 1.0, 1.0, 1)),)), 0.3, IDS)
    error = (model(IDS).logits - expected).norm() / expected.norm()
    assert error < 2e-2


def test_it_is_nearer_to_the_original_than_lorap(tiny: Tiny, config: Make) -> None:
    def error(method: str) -> float:
        model = tiny(blocks=4)
        expected = model(IDS).logits
        compress(model, build_stack(config(f"method={method}").method), 0.4, IDS, Walk(4))
        return float((model(IDS).logits - expected).norm() / expected.norm())

    assert error("lorap_plus") < error("lorap")


def test_it_is_not_asked_to_measure_at_ratio_zero(tiny: Tiny, config: Make) -> None:
    model = tiny()
    assert planned(stack(config), model, 0.0).is_dense
    assert torch.isfinite(model(IDS).logits).all()


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_aligned_sizes(tiny: Tiny, config: Make, family: str) -> None:
    """Every rank and width is a multiple, or the full size, and no more is kept than without."""
    model = tiny(family, kv_heads=2, blocks=3)
    aligned = build_stack(config("method=lorap_plus", "method.stages.all.round_to=16").method)
    dense = shape_of(model)
    before = planned(aligned, model, 0.3)
    plan = compress(model, aligned, 0.3, IDS)
    for edit in (*before.edits, *plan.edits):
        assert isinstance(edit, (Factor, Resize))
        size = edit.rank if isinstance(edit, Factor) else edit.size
        assert size is not None and size % 16 == 0
    assert plan.shape(dense).parameters <= 0.7 * dense.parameters + 1


@pytest.mark.parametrize("power", [0.7, 1.0, 1.8])
def test_a_response_is_a_power_law_between_its_points(power: float) -> None:
    """The slope of c D^p is c p D^(p - 1), between the points and beyond them."""
    points = (0.1, 0.4, 2.0)
    found = Response(points, tuple(3 * point**power for point in points))
    for at in (0.01, 0.1, 0.2, 1.0, 5.0):
        assert found.slope(at) == pytest.approx(3 * power * at ** (power - 1))


def test_blocks_that_respond_more_keep_more(tiny: Tiny, config: Make) -> None:
    model = tiny(blocks=3)
    shape, step = shape_of(model), step_of(stack(config), "all")
    assert isinstance(step, LorapPlus)
    seen = survey(
        Source(model), IDS, [step.curves], Walk(4), sharing=None, bars=lambda label, unit: iter
    )
    curves = seen.of(step.curves)
    modules = {block.index: modules_of(block, curves[block.index]) for block in shape.blocks}
    alike = {i: Response((1e-4, 1e-2), (1e-4, 1e-2)) for i in modules}
    budget = int(0.6 * shape.parameters)

    def kept(index: int, found: dict[int, Response]) -> int:
        plan = Plan(0.4, tuple(spend(modules, budget, found, 1.0)))
        return plan.shape(shape).by_index[index].parameters

    hurt = alike | {1: Response((1e-4, 1e-2), (1e-2, 1.0))}
    assert kept(1, hurt) > kept(1, alike)
