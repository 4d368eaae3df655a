"""The mathematics of each rival against an identity or a slow reference."""

import copy
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorap_exp.calibration.walk import Walk
from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.evaluation.perplexity import mean_nll
from lorap_exp.methods.asvd import Sensitivity
from lorap_exp.methods.laco import LaCo, collapse, restore
from lorap_exp.methods.low_rank import LowRank
from lorap_exp.methods.stack import Stack, build_stack
from lorap_exp.models.families import blocks_of
from lorap_exp.models.modeling_compressed import LowRankLinear
from lorap_exp.models.source import Source
from lorap_exp.planning.edits import Bias, Drop, Merge, Plan, Resize
from tests.methods.stacks import compress, planned, shape_of, whole

Make = Callable[..., Config]
Tiny = Callable[..., PreTrainedModel]
IDS = torch.arange(8 * 16).view(8, 16) * 7 % 251


def stack(config: Make, method: str, *overrides: str) -> Stack:
    return build_stack(config(f"method={method}", *overrides).method)


def inputs_of(model: PreTrainedModel, name: str) -> list[Tensor]:
    """What a matrix of every block reads, (tokens, features)."""
    seen: list[Tensor] = []
    hooks = [
        block.linear(name).register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, 1)))
        for block in blocks_of(model)
    ]
    model(IDS)
    for hook in hooks:
        hook.remove()
    return seen


def test_wanda_sp_keeps_the_heads_of_its_formula(tiny: Tiny, config: Make) -> None:
    model = tiny(heads=8, kv_heads=4)
    (block, *_), (x, *_) = blocks_of(model), inputs_of(model, "o")
    scores = []
    for head in range(4):
        columns = range(16 * head, 16 * head + 16)
        terms = [block.weight("o")[:, c].abs().mean() * x[:, c].norm() for c in columns]
        scores.append(sum(term.item() for term in terms))
    best = sorted(sorted(range(4), key=lambda head: scores[head])[2:])
    before = block.weight("o").clone()
    compress(model, stack(config, "wanda_sp"), 0.5, IDS)
    kept = [before[:, 16 * head : 16 * head + 16] for head in best]
    assert torch.equal(blocks_of(model)[0].weight("o"), torch.cat(kept, 1))


def flap_reference(
    model: PreTrainedModel, ratio: float, bias: int
) -> tuple[dict[Any, list[int]], Any]:
    """Kept units of every (block, matrix) by FLAP's own words, and the mean of every input."""
    units, means = [], {}
    for name, count in (("o", 2), ("down", 176)):
        for index, x in enumerate(inputs_of(model, name)):
            W = blocks_of(model)[index].weight(name)
            score = x.double().var(0, correction=0) * W.double().norm(dim=0) ** 2
            score = (score - score.mean()) / score.std()
            means[index, name] = x.double().mean(0)
            size = len(score) // count
            weights = {"o": 32 * 64 * 3, "down": 64 * 3}[name]
            for unit in range(count):
                value = score[unit * size : (unit + 1) * size].mean().item()
                units.append((value, index, name, unit, weights))
    total = sum(weights for *_, weights in units)
    kept = {key: list(range(2 if key[1] == "o" else 176)) for key in means}
    touched, cost = set[tuple[int, str]](), total
    for _, index, name, unit, weights in sorted(units):
        if cost <= (1 - ratio) * total:
            break
        if len(kept[index, name]) == 1:
            continue
        kept[index, name].remove(unit)
        cost += (0 if (index, name) in touched else bias) - weights
        touched.add((index, name))
    return kept, means


@pytest.mark.parametrize("biased", [False, True])
def test_flap_is_the_model_with_the_removed_channels_at_their_means(
    tiny: Tiny, config: Make, biased: bool
) -> None:
    """The selection by a global threshold, then the same logits as constants in their place."""
    model = tiny(blocks=4)
    if biased:
        for block in blocks_of(model):
            for name in ("o", "down"):
                block.linear(name).bias = torch.nn.Parameter(torch.randn(64), False)
    dense, before = copy.deepcopy(model), shape_of(model)
    kept, means = flap_reference(dense, 0.4, bias=0 if biased else 64)
    done = compress(model, stack(config, "flap"), 0.4, IDS)
    for block in blocks_of(model):
        assert block.weight("down").shape[1] == len(kept[block.index, "down"])
        assert block.weight("o").shape[1] == 32 * len(kept[block.index, "o"])

    def freeze(key: tuple[int, str], units: int) -> Any:
        gone = torch.ones(units, dtype=torch.bool)
        gone[kept[key]] = False
        gone = gone.repeat_interleave(len(means[key]) // units)
        return lambda _, x: (torch.where(gone, means[key].float(), x[0]),)

    for block in blocks_of(dense):
        for name, units in (("o", 2), ("down", 176)):
            hook = freeze((block.index, name), units)
            block.linear(name).register_forward_pre_hook(hook)
    torch.testing.assert_close(model(IDS).logits, dense(IDS).logits, atol=1e-4, rtol=1e-4)
    added = [edit for edit in done.edits if isinstance(edit, Bias)]
    assert bool(added) is not biased
    resized = [edit for edit in done.edits if isinstance(edit, Resize)]
    assert len(resized) == len({(edit.block, edit.space) for edit in resized}) > 4
    left = [block.weight(name) for block in blocks_of(model) for name in block.family.matrices]
    stored = sum(weight.numel() for weight in left) + 64 * len(added)
    assert done.shape(before).parameters == stored


def test_llm_pruner_scores_are_those_of_autograd(tiny: Tiny, config: Make) -> None:
    model = tiny(blocks=3, kv_heads=4)
    graded = copy.deepcopy(model).requires_grad_(True)
    graded(input_ids=IDS, labels=IDS).loss.backward()
    expected = {}
    for block in blocks_of(graded):
        change = {n: (block.weight(n) * block.weight(n).grad).abs() for n in block.family.matrices}
        for space, units in (("heads", 4), ("ffn", 176)):
            rows = ("q", "k", "v") if space == "heads" else ("gate", "up")
            column = "o" if space == "heads" else "down"
            size = len(change[rows[0]]) // units
            scores = []
            for unit in range(units):
                part = slice(unit * size, (unit + 1) * size)
                found = sum(change[name][part].sum() for name in rows)
                scores.append(found + change[column][:, part].sum())
            order = torch.stack(scores).argsort(descending=True)
            expected[block.index, space] = order[: units // 2].sort().values
    before = copy.deepcopy(model)
    chosen = stack(config, "llm_pruner", "method.protect=[0,0]")
    compress(model, chosen, 0.5, IDS)
    for block, old in zip(blocks_of(model), blocks_of(before), strict=True):
        channels = expected[block.index, "ffn"]
        assert torch.equal(block.weight("down"), old.weight("down")[:, channels])
        heads = expected[block.index, "heads"]
        rows = old.weight("q").unflatten(0, (4, -1))[heads].flatten(0, 1)
        assert torch.equal(block.weight("q"), rows)


def test_gradients_need_a_walk_that_nothing_interrupts(tiny: Tiny, config: Make) -> None:
    chosen = stack(config, "llm_pruner", "method.protect=[0,0]")
    how = Walk(4, order="group")
    with pytest.raises(LorapError, match="calibration.order must be block, .* got group"):
        compress(tiny(blocks=3), chosen, 0.5, IDS, how)


def test_slimgpt_fits_the_outputs_better_than_bare_removal(tiny: Tiny, config: Make) -> None:
    """|W x - W' x'| of the first MLP on what was seen, against the same channels unrepaired."""
    model = tiny()
    (block, *_), (x, *_) = blocks_of(model), inputs_of(model, "down")
    W, gate = block.weight("down").clone(), block.weight("gate").clone()
    compress(model, stack(config, "slimgpt", "method.stages.units.first=1"), 0.5, IDS)
    now = blocks_of(model)[0]
    kept = [int((gate == row).all(1).nonzero()) for row in now.weight("gate")]
    assert len(kept) == 88 == len(set(kept))
    bare = (x @ W.mT - x[:, kept] @ W[:, kept].mT).norm()
    fitted = (x @ W.mT - x[:, kept] @ now.weight("down").mT).norm()
    assert fitted < 0.9 * bare


def test_laco_adds_the_differences_to_the_original_base(tiny: Tiny) -> None:
    model = tiny(blocks=4)
    base, *behind = blocks_of(model)[1:]
    weights = [block.weight("gate").clone() for block in (base, *behind)]
    source = Source(model)
    saved = collapse(source, base, behind)
    expected = weights[0] + (weights[1] - weights[0]) + (weights[2] - weights[0])
    torch.testing.assert_close(base.weight("gate"), expected)
    restore(source, base, saved)
    assert torch.equal(base.weight("gate"), weights[0])


@pytest.mark.parametrize("threshold", [-1.0, 0.9, 1.0])
def test_laco_ends_at_the_planned_number_and_its_plan_says_how(
    tiny: Tiny, tmp_path: Path, threshold: float
) -> None:
    """Merges are those of the plan and nothing else, whatever was tried and rejected."""
    model = tiny(blocks=8)
    dense = copy.deepcopy(model)
    step = LaCo(layers=2, threshold=threshold, decrease=0.05, interval=1, lowest=1, samples=4)
    edits = step.plan(shape_of(model), 3 / 8, None)
    assert edits == [Drop((5, 6, 7))]
    tried = list[Merge | None]()

    def shown(trials: Iterable[Merge | None]) -> Iterator[Merge | None]:
        for trial in trials:
            tried.append(trial)
            yield trial

    part = whole(model, IDS, tmp_path, bars=lambda label, unit: shown)
    done = Plan(3 / 8) + step.apply(part, edits, None, {})
    assert len(done.removed_layers) == 3 and 0 not in done.removed_layers
    assert Plan.from_dict(done.to_dict()) == done
    blocks = blocks_of(dense)
    for merge in done.edits:
        assert isinstance(merge, Merge)
        assert merge.cosine > merge.threshold
        assert merge.threshold <= threshold and len(merge.layers) <= 2
        collapse(Source(dense), blocks[merge.into], [blocks[index] for index in merge.layers])
    for block in blocks_of(part.model):
        for name in block.family.matrices:
            assert torch.equal(block.weight(name), blocks[block.index].weight(name))
    if threshold == 1.0:
        assert all(m.threshold < 1 for m in done.edits if isinstance(m, Merge)), "it was lowered"
        assert None in tried, "the bar moves with every trial"
    assert torch.isfinite(part.model(IDS).logits).all()


def test_laco_has_too_few_layers(tiny: Tiny) -> None:
    step = LaCo(layers=2, threshold=0.5, decrease=0.05, interval=1, lowest=1, samples=4)
    with pytest.raises(ValueError, match="the 3 layers to merge .* at most 2"):
        step.plan(shape_of(tiny(blocks=4)), 0.75, None)


def test_absmean_is_svd_of_the_scaled_matrix_mapped_back(tiny: Tiny) -> None:
    model = tiny()
    x, W = inputs_of(model, "up")[0], blocks_of(model)[0].weight("up").clone()
    scale = x.abs().mean(0).sqrt()
    U, s, V = torch.linalg.svd(W * scale, full_matrices=False)
    step = LowRank(("up",), "absmean", 0.5, "uniform", 3.0, 1, True, "pair")
    compress(model, Stack((("all", step),)), 0.5, IDS)
    found = blocks_of(model)[0].linear("up")
    assert isinstance(found, LowRankLinear)
    r = found.rank
    torch.testing.assert_close(
        found.weight, (U[:, :r] * s[:r]) @ V[:r] / scale, atol=1e-4, rtol=1e-3
    )


def test_sensitivities_are_losses_of_whole_passes(tiny: Tiny) -> None:
    """Running from the changed block on gives the loss of the model with that matrix alone cut."""
    model = tiny(blocks=3)
    probe = Sensitivity(("q", "down"), 0.5, (0.0, 0.5), samples=4)
    found = probe.measure(Source(model), IDS, 2, iter)
    assert found["dense"] == pytest.approx(mean_nll(model, IDS[:4], 4), rel=1e-6)
    assert isinstance(blocks_of(model)[2].linear("down"), torch.nn.Linear)
    for index, name in ((0, "q"), (2, "down"), (1, "q")):
        changed = copy.deepcopy(model)
        x = inputs_of(changed, name)[index]
        linear = blocks_of(changed)[index].linear(name)
        scale = x.abs().mean(0).sqrt()
        U, s, V = torch.linalg.svd(linear.weight * scale, full_matrices=False)
        rank = int(0.5 * linear.weight.numel() / sum(linear.weight.shape))
        for r, loss in zip((1, rank), found["losses"][str(index)][name], strict=True):
            linear.weight.copy_((U[:, :r] * s[:r]) @ V[:r] / scale)
            assert loss == pytest.approx(mean_nll(changed, IDS[:4], 4), rel=1e-5)


def test_asvd_spends_the_budget_where_it_was_measured(tiny: Tiny, config: Make) -> None:
    """A matrix that does nothing is cut to the least rank; the parameters are those of the plan."""
    model = tiny(blocks=4)
    blocks_of(model)[1].weight("up").zero_()
    dense, chosen = shape_of(model), stack(config, "asvd")
    without = planned(chosen, model, 0.3).shape(dense).parameters
    done = compress(model, chosen, 0.3, IDS).shape(dense)
    assert done.by_index[1].matrices["gate"].rank == 1
    assert done.parameters == pytest.approx(without, rel=0.03)


@pytest.mark.parametrize("levels", ["[0.2,0.4]", "[0,0.4,0.2]", "[0,1]", "[]"])
def test_levels_that_make_no_sense_are_named(config: Make, levels: str) -> None:
    with pytest.raises(LorapError, match=r"method.stages.all.levels"):
        stack(config, "asvd", f"method.stages.all.levels={levels}")
