"""Fewer experts in every layer of a mixture: the least used go, and the architecture is stock."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from lorap_exp import pipeline
from lorap_exp.calibration.observe import routed
from lorap_exp.calibration.probes import Probe
from lorap_exp.calibration.walk import Visit, Walk, walk
from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.models.counting import count_parameters
from lorap_exp.models.families import blocks_of
from lorap_exp.models.source import Source
from lorap_exp.planning.edits import Resize
from tests.methods.stacks import compress, planned, shape_of, stack_of

Make = Callable[..., Config]
Tiny = Callable[..., PreTrainedModel]
MIXTURES = ["mixtral", "qwen3_moe"]
IDS = torch.randint(1, 200, (8, 16), generator=torch.Generator().manual_seed(0))
STAGE = "+stage@method.stages.experts=expert_pruning"
EXPERTS = ["method=lorap", "method.stages.attention=null", "method.stages.mlp=null", STAGE]
BOTH = ["method=svd", "method.stages.mlp=null", STAGE]


def test_the_weight_of_a_router_is_spread_over_the_experts() -> None:
    index, weight = torch.tensor([[2, 0], [1, 2]]), torch.tensor([[0.75, 0.25], [0.6, 0.4]])
    experts = torch.nn.Module()
    experts.register_parameter("down", torch.nn.Parameter(torch.zeros(4, 3, 2)))
    expected = torch.tensor([[0.25, 0.0, 0.75, 0.0], [0.0, 0.6, 0.4, 0.0]])
    assert torch.equal(routed(experts, index, weight), expected)


@pytest.mark.parametrize("family", MIXTURES)
def test_the_least_used_expert_goes(config: Make, tiny: Tiny, family: str) -> None:
    model = tiny(family, blocks=2)
    probe = Probe("experts", "mean_absolute")
    visits = [Visit(("experts",), (probe,))]
    found = {
        block.index: evidence[probe]
        for block, _, evidence in walk(Source(model), IDS, visits, Walk(4, rewrite=False))
    }
    down = blocks_of(model)[0].module.get_parameter("mlp.experts.down_proj").clone()
    weakest = int(found[0].argmin())
    assert 0.4 < found[0].sum() < 1 + 1e-5  # Qwen3 does not normalise what it chose
    plan = compress(model, stack_of(config, *EXPERTS), 0.25, IDS)
    kept = [number for number in range(4) if number != weakest]
    after = blocks_of(model)[0].module.get_parameter("mlp.experts.down_proj")
    assert torch.equal(after, down[kept])
    assert list(plan.edits) == [Resize(0, "experts", 3), Resize(1, "experts", 3)]
    assert model(IDS).logits.isfinite().all()


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("method", [EXPERTS, BOTH])
def test_a_job_on_a_mixture(config: Make, tmp_path: Path, family: str, method: list[str]) -> None:
    """As many parameters as planned; with nothing but experts removed the folder is stock."""
    cfg = config(f"model.random.family={family}", "ratio=0.25", *method)
    result = pipeline.run(cfg, tmp_path / "job")
    assert result.kept < 0.8
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "job" / "model", trust_remote_code=method is BOTH
    )
    assert count_parameters(model)["mlp"] == result.parameters["compressed"]["mlp"]
    name = "num_local_experts" if family == "mixtral" else "num_experts"
    assert getattr(model.config, name) == 3
    assert (model.config.model_type == family) is (method is EXPERTS)


@pytest.mark.parametrize("family", MIXTURES)
def test_a_plan_counts_experts_with_their_rows_of_the_router(
    config: Make, tiny: Tiny, family: str
) -> None:
    model = tiny(family, blocks=2)
    counts, shape = count_parameters(model), shape_of(model)
    assert shape.parameters == counts["attention"] + counts["mlp"]
    plan = planned(stack_of(config, *EXPERTS), model, 0.5)
    assert plan.shape(shape).parameters == counts["attention"] + counts["mlp"] // 2


def test_what_cannot_be_had_is_one_sentence(config: Make, tmp_path: Path) -> None:
    mixture = "model.random.family=mixtral"
    with pytest.raises(LorapError, match="ratio must leave 2 to 4 of 4 experts .* got 1"):
        pipeline.run(config(mixture, "ratio=0.75", *EXPERTS), tmp_path / "few")
    with pytest.raises(LorapError, match=r"protect must be \[0, 0\] when experts are removed"):
        pipeline.run(
            config(mixture, "ratio=0.1", "method.protect=[1,0]", *EXPERTS), tmp_path / "unequal"
        )
    with pytest.raises(LorapError, match="needs a mixture of them, got 'llama'"):
        pipeline.run(config("ratio=0.25", *EXPERTS), tmp_path / "plain")
