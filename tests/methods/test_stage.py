from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.methods.stage import Stage, build_stages, compress, plan_stack
from lorap_exp.models.families import blocks_of, shapes_of
from lorap_exp.models.modeling_compressed import LowRankLinear

IDS = torch.arange(8 * 16).view(8, 16) % 200
Make = Callable[..., Config]
Tiny = Callable[..., PreTrainedModel]


def stages(config: Make, *overrides: str) -> list[Stage]:
    return build_stages(config(*overrides).method)


@pytest.mark.parametrize("metric", ["svd", "awsvd", "afm", "activation"])
@pytest.mark.parametrize("allocation", ["published", "uniform", "spectrum"])
def test_every_axis_compresses_every_family(
    tiny: Tiny, family: str, config: Make, metric: str, allocation: str
) -> None:
    chosen = stages(
        config,
        f"method.stages.attention.metric={metric}",
        f"method.stages.attention.allocation={allocation}",
    )
    model = tiny(family)
    plan = plan_stack(chosen, shapes_of(model), 0.4)
    compress(model, chosen, plan, ids=IDS, batch_size=4, propagation="compressed")
    assert isinstance(blocks_of(model)[1].linear("q"), LowRankLinear)
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
        chosen = stages(config, f"method.stages.attention.metric={metric}")
        plan = plan_stack(chosen, shapes_of(model), 0.4)
        compress(model, chosen, plan, ids=IDS, batch_size=4, propagation="compressed")
        errors[metric] = (blocks_of(model)[0].linear("q")(x[0]) - linear(x[0])).norm().item()
    assert errors["activation"] < errors["awsvd"] < errors["svd"]


def test_a_sublayer_alone_leaves_the_other_untouched(tiny: Tiny, config: Make) -> None:
    model = tiny()
    before = blocks_of(model)[0].weight("gate").clone()
    chosen = stages(config, "method.stages.mlp=null")
    plan = plan_stack(chosen, shapes_of(model), 0.4)
    compress(model, chosen, plan, ids=IDS, batch_size=4, propagation="compressed")
    assert torch.equal(blocks_of(model)[0].weight("gate"), before)


def test_two_stages_with_one_target_are_refused(config: Make) -> None:
    with pytest.raises(LorapError, match="gate is a target of attention and of mlp"):
        stages(config, "method.stages.attention.targets=[q,gate]")


def test_a_ratio_without_stages_is_refused(tiny: Tiny) -> None:
    with pytest.raises(LorapError, match=r"ratio must be 0 .* got 0.3"):
        plan_stack([], shapes_of(tiny()), 0.3)


def test_ratio_zero_is_dense(tiny: Tiny, config: Make) -> None:
    """Also where the break-even rank is no integer: 64 x 32 of grouped-query attention."""
    assert plan_stack(stages(config), shapes_of(tiny()), 0.0).is_dense


def test_an_impossible_ratio_is_named(tiny: Tiny, config: Make) -> None:
    with pytest.raises(LorapError, match=r"ratio 0.99 cannot be planned: the rank of q in block 0"):
        plan_stack(stages(config), shapes_of(tiny()), 0.99)


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
        stages(config, f"{plus}method.stages.{override.removeprefix('+')}")
