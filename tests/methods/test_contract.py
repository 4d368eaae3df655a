from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.methods.refit import Refit
from lorap_exp.methods.stack import Stack
from lorap_exp.models.families import blocks_of
from lorap_exp.models.modeling_compressed import LowRankLinear
from tests.methods.stacks import compress, planned, shape_of, stack_of

IDS = torch.arange(8 * 16).view(8, 16) % 200
Make = Callable[..., Config]
Tiny = Callable[..., PreTrainedModel]


@pytest.mark.parametrize("metric", ["svd", "awsvd", "afm", "activation"])
@pytest.mark.parametrize("allocation", ["published", "uniform", "spectrum"])
def test_every_axis_compresses_every_family(
    tiny: Tiny, family: str, config: Make, metric: str, allocation: str
) -> None:
    chosen = stack_of(
        config,
        f"method.stages.attention.metric={metric}",
        f"method.stages.attention.allocation={allocation}",
    )
    model = tiny(family)
    compress(model, chosen, 0.4, IDS)
    block = blocks_of(model)[1]
    factored = {name for name in "qkvo" if isinstance(block.linear(name), LowRankLinear)}
    assert factored and ("q" in factored or allocation == "spectrum")  # which may leave q dense
    assert torch.isfinite(model(IDS).logits).all()


def test_weighting_lowers_the_error_on_the_calibration_inputs(tiny: Tiny, config: Make) -> None:
    """|W x - W' x| on what was seen: activation <= awsvd <= svd on a first block."""
    errors = {}
    for metric in ("svd", "awsvd", "activation"):
        model = tiny()
        model.get_input_embeddings().weight.data[:, :8] *= 20
        linear = blocks_of(model)[0].linear("q")
        x: list[torch.Tensor] = []
        handle = linear.register_forward_pre_hook(lambda _, inputs, x=x: x.append(inputs[0]))
        model(IDS)
        handle.remove()
        chosen = stack_of(config, f"method.stages.attention.metric={metric}")
        compress(model, chosen, 0.4, IDS)
        errors[metric] = (blocks_of(model)[0].linear("q")(x[0]) - linear(x[0])).norm().item()
    assert errors["activation"] < errors["awsvd"] < errors["svd"]


def test_a_sublayer_alone_leaves_the_other_untouched(tiny: Tiny, config: Make) -> None:
    model = tiny()
    before = blocks_of(model)[0].weight("gate").clone()
    chosen = stack_of(config, "method.stages.mlp=null")
    compress(model, chosen, 0.4, IDS)
    assert torch.equal(blocks_of(model)[0].weight("gate"), before)


def test_two_stages_with_one_target_are_refused(config: Make) -> None:
    with pytest.raises(LorapError, match="gate is a target of attention and of mlp"):
        stack_of(config, "method.stages.attention.targets=[q,gate]")


def test_a_ratio_without_stages_is_refused(tiny: Tiny) -> None:
    with pytest.raises(LorapError, match=r"ratio must be 0 .* got 0.3"):
        planned(Stack(()), tiny(), 0.3)


def test_ratio_zero_is_dense(tiny: Tiny, config: Make) -> None:
    """Also where the break-even rank is no integer: 64 x 32 of grouped-query attention."""
    assert planned(stack_of(config), tiny(), 0.0).is_dense


def test_an_impossible_ratio_is_named(tiny: Tiny, config: Make) -> None:
    with pytest.raises(LorapError, match=r"ratio 0.99 cannot be planned: the rank of q in block 0"):
        planned(stack_of(config), tiny(), 0.99)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("attention.metric=foo", "method.stages.attention.metric must be one of .* got 'foo'"),
        ("attention.exponent=-1", "method.stages.attention.exponent must be .* 0, got -1"),
        ("mlp.keep_least=0.2", "method.stages.mlp.keep_least must be .* 0.1, got 0.2"),
        ("+mlp.typo=1", "method.stages.mlp.typo is not a setting .* got 1"),
    ],
)
def test_wrong_fields_are_named(config: Make, override: str, message: str) -> None:
    plus = "+" if override.startswith("+") else ""
    with pytest.raises(LorapError, match=message):
        stack_of(config, f"{plus}method.stages.{override.removeprefix('+')}")


@pytest.mark.parametrize(
    "importance", ["published", "magnitude", "wanda_sp", "output_energy", "random"]
)
def test_every_importance_prunes_to_the_width(
    tiny: Tiny, family: str, config: Make, importance: str
) -> None:
    chosen = stack_of(
        config, f"method.stages.mlp.importance={importance}", "method.stages.attention=null"
    )
    model = tiny(family)
    compress(model, chosen, 0.4, IDS)
    assert blocks_of(model)[0].weight("down").shape[1] == 176 - (int(0.41 * 176) - 1)


@pytest.mark.parametrize("method", ["pruned", "low_rank", "heads_low_rank_mlp"])
def test_the_other_pairings_of_sublayers(
    tiny: Tiny, family: str, config: Make, method: str
) -> None:
    chosen = stack_of(config, f"method={method}")
    model = tiny(family, blocks=4)
    dense = shape_of(model)
    if method != "low_rank" and family in ("opt", "phi3"):
        with pytest.raises(LorapError, match="this family has a fixed number of heads"):
            planned(chosen, model, 0.5)
        return
    done = compress(model, chosen, 0.5, IDS)
    kept = done.shape(dense).parameters / dense.parameters
    assert kept == pytest.approx(0.5, abs=0.03)
    assert torch.isfinite(model(IDS).logits).all()


def test_pruned_heads_stay_with_their_queries(tiny: Tiny, config: Make) -> None:
    """A group of zeros is the least important; removing it changes nothing."""
    model = tiny(heads=6, kv_heads=3, hidden_size=96)
    for block in blocks_of(model):
        block.weight("o")[:, 32:64] = 0
        for name in ("q", "k", "v"):
            part = block.weight(name)
            part.unflatten(0, (3, -1))[1] = 0
    before = model(IDS).logits
    chosen = stack_of(config, "method=pruned", "method.stages.mlp=null")
    plan = planned(chosen, model, 1 / 3)
    assert [block.size("heads") for block in plan.shape(shape_of(model)).blocks] == [2, 2]
    compress(model, chosen, 1 / 3, IDS)
    assert blocks_of(model)[0].weight("q").shape == (64, 96)
    torch.testing.assert_close(model(IDS).logits, before, atol=1e-5, rtol=1e-4)


def test_protected_blocks_stay_dense_and_the_others_pay(tiny: Tiny, config: Make) -> None:
    model = tiny(blocks=6)
    dense, plan = shape_of(model), planned(stack_of(config), model, 0.3, protect=(1, 2))
    pairs = zip(plan.shape(dense).blocks, dense.blocks, strict=True)
    assert [a == b for a, b in pairs] == [True, False, False, False, True, True]
    kept = plan.shape(dense).parameters / dense.parameters
    assert kept == pytest.approx(0.7, abs=0.02)


def test_the_ratio_can_count_the_whole_model(tiny: Tiny, config: Make) -> None:
    model = tiny(blocks=6)
    dense, whole = shape_of(model), sum(p.numel() for p in model.parameters())
    plan = planned(stack_of(config), model, 0.2, whole=whole)
    removed = dense.parameters - plan.shape(dense).parameters
    assert removed == pytest.approx(0.2 * whole, rel=0.03)
    with pytest.raises(LorapError, match="must leave something of the"):
        planned(stack_of(config), model, 0.9, whole=whole)


def test_spectrum_spends_the_budget_of_its_block(tiny: Tiny, config: Make) -> None:
    model = tiny()
    dense = shape_of(model)
    chosen = stack_of(config, "method.stages.attention.allocation=spectrum")
    asked = planned(chosen, model, 0.4).shape(dense)
    done = compress(model, chosen, 0.4, IDS).shape(dense)
    for one, other in zip(done.blocks, asked.blocks, strict=True):
        assert one.parameters <= other.parameters
        assert one.parameters == pytest.approx(other.parameters, rel=0.02)


def test_a_sliced_stream_protects_no_block(tiny: Tiny, config: Make) -> None:
    with pytest.raises(LorapError, match=r"method.protect must be \[0, 0\] when the residual"):
        planned(stack_of(config, "method=slicegpt"), tiny(blocks=6), 0.3, protect=(1, 0))


@pytest.mark.parametrize("protect", [(0, 2), (2, 0), (0, 31), (1, 1)])
def test_protecting_everything_is_refused(
    tiny: Tiny, config: Make, protect: tuple[int, int]
) -> None:
    with pytest.raises(LorapError, match=r"method.protect must leave at least one of the 2 blocks"):
        planned(stack_of(config), tiny(), 0.3, protect=protect)


def test_a_ratio_without_a_target_is_refused(tiny: Tiny, config: Make) -> None:
    with pytest.raises(LorapError, match="attention.targets must have at least one entry"):
        stack_of(config, "method.stages.attention.targets=[]", "method.stages.mlp=null")
    refit = Stack((("refit", Refit(("o",), 0.1)),))
    with pytest.raises(LorapError, match="no stage has a target"):
        planned(refit, tiny(), 0.3)
    gate = stack_of(config, "method.stages.attention.targets=[gate]", "method.stages.mlp=null")
    with pytest.raises(LorapError, match="no stage has a target"):
        planned(gate, tiny("opt"), 0.3)


def test_a_stage_without_a_class_is_named(config: Make) -> None:
    for wrong in ("{metric:svd}", "{_target_:lorap_exp.nowhere.Stage}"):
        with pytest.raises(LorapError, match=r"method.stages.x._target_ must name a class"):
            stack_of(config, f"+method.stages.x={wrong}")


def test_a_non_finite_weight_names_block_and_matrix(tiny: Tiny, config: Make) -> None:
    model = tiny()
    blocks_of(model)[1].weight("v")[0, 0] = float("nan")
    chosen = stack_of(config, "method=svd_all")
    with pytest.raises(LorapError, match="compress: v in block 1: .* not finite"):
        compress(model, chosen, 0.4, IDS)


def test_random_scores_follow_the_seed_of_the_job(config: Make) -> None:
    assert config("seed=3").method.stages["mlp"]["seed"] == 3
