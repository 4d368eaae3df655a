"""Quantisation as the last stage: what it plans, refuses and rounds, and what is saved of it."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import lorap_exp
from lorap_exp import pipeline
from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.methods.quantise import layers_of
from lorap_exp.models.families import blocks_of
from lorap_exp.models.quantised import known_scales, matrix_layers
from lorap_exp.models.rewriting import factored, gathered
from lorap_exp.ops.gptq import nearest, restored
from lorap_exp.planning.edits import Quantised
from lorap_exp.reporting.table import cells, frame
from lorap_exp.workspace.extras import EXTRAS
from tests.methods.stacks import compress, planned, stack_of

IDS = torch.arange(8 * 16).view(8, 16) % 200
Make = Callable[..., Config]
Tiny = Callable[..., PreTrainedModel]
EVEN = {"intermediate_size": 192, "hidden_size": 64}
SIZES = [f"model.random.{name}={size}" for name, size in EVEN.items()]
ROUND = [
    "method.stages.attention.round_to=8",
    "method.stages.attention.allocation=uniform",
    "method.stages.mlp.round_to=8",
]
GROUP = "method.stages.quantise.group_size=8"
SHORT = ["evaluation.zero_shot=null", "evaluation.perplexity.max_tokens=512"]
needs_extra = pytest.mark.skipif(
    importlib.util.find_spec("compressed_tensors") is None, reason="the extra quantise is not there"
)


def stage(to: str) -> str:
    return f"+stage@method.stages.quantise={to}"


def test_it_plans_integers_and_no_other_size(tiny: Tiny, config: Make) -> None:
    model = tiny(**EVEN)
    plan = planned(stack_of(config, *ROUND, stage("gptq"), GROUP), model, 0.4)
    plain = planned(stack_of(config, *ROUND), model, 0.4)
    assert plan.edits == (*plain.edits, *(Quantised(i, "gptq", 8) for i in range(2)))


def test_ratio_zero_leaves_quantisation_alone(tiny: Tiny, config: Make) -> None:
    stack = stack_of(config, stage("int8"))
    assert [name for name, _ in stack.at(0.0).steps] == ["quantise"] and stack.at(0.1) is stack
    assert planned(stack, tiny(), 0.0).edits == (Quantised(0, "int8", 32), Quantised(1, "int8", 32))


def test_null_leaves_the_model_as_it_is(tiny: Tiny, config: Make) -> None:
    """So that a sweep can have it beside the forms."""
    none = stack_of(config, stage("gptq"), "method.stages.quantise.to=null")
    assert planned(none, tiny(), 0.4) == planned(stack_of(config), tiny(), 0.4)
    models = tiny(), tiny()
    for model, stack in zip(models, (none, stack_of(config)), strict=True):
        compress(model, stack, 0.4, IDS)
    assert torch.equal(models[0](IDS).logits, models[1](IDS).logits)


def test_rows_that_no_group_fits_are_refused(tiny: Tiny, config: Make) -> None:
    wrong = r"group_size .* to int4 must divide .* got 32, and .* has rows of .*: round_to=32 in"
    with pytest.raises(LorapError, match=wrong):
        planned(stack_of(config, stage("int4")), tiny(**EVEN), 0.4)
    with pytest.raises(LorapError, match=r"down of block 0 has rows of 176 \(2 such in all\)"):
        planned(stack_of(config, stage("gptq")), tiny(), 0.0)
    assert planned(stack_of(config, stage("int8")), tiny(), 0.4)


def test_it_comes_last_also_behind_a_recovery(config: Make) -> None:
    stack = stack_of(config, "method=lorap_plus_distilled", stage("int8"))
    assert [name for name, _ in stack.steps] == ["all", "recovery", "quantise"]
    assert [len(group) for group in stack.groups()] == [1, 1, 1]
    with pytest.raises(LorapError, match="quantise must come last, but recovery follows it"):
        stack_of(config, stage("int8"), "+stage@method.stages.recovery=distillation")


def test_a_missing_extra_is_named_before_anything_is_loaded(
    tmp_path: Path, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXTRAS, "compressed-tensors", ("no_such_package", "quantise"))
    monkeypatch.setattr("lorap_exp.steps.compress.load_model", None)
    with pytest.raises(LorapError, match=r"needs compressed-tensors: pip install 'lorap-exp\["):
        pipeline.run(config(stage("int8")), tmp_path)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_gptq_leaves_integers_times_scales(tiny: Tiny, config: Make, family: str) -> None:
    model = tiny(family, **EVEN)
    compress(model, stack_of(config, *ROUND, stage("gptq"), GROUP), 0.4, IDS)
    layers, scales = matrix_layers(model), known_scales(model)
    assert scales.keys() == layers.keys() and any(".left." in path for path in layers)
    for path, layer in layers.items():
        assert scales[path].shape == (layer.out_features, layer.in_features // 8)
        again = restored(nearest(layer.weight, scales[path], 4), scales[path])
        torch.testing.assert_close(again, layer.weight, rtol=1e-6, atol=0)


def test_gptq_is_nearer_to_the_model_than_nearest(tiny: Tiny, config: Make) -> None:
    """On what was seen, of the whole model's logits."""
    seen, dense = {}, tiny(**EVEN)
    for ridge in (0.01, 1e6):  # with so large a ridge columns are independent
        model = tiny(**EVEN)
        asked = [stage("gptq"), GROUP, f"method.stages.quantise.ridge={ridge}"]
        compress(model, stack_of(config, *asked).at(0.0), 0.0, IDS)
        seen[ridge] = float((model(IDS).logits - dense(IDS).logits).norm())
    assert seen[0.01] < 0.9 * seen[1e6]


def test_inputs_of_factors_follow_from_those_of_the_matrix(tiny: Tiny) -> None:
    from lorap_exp.calibration.statistics import SecondMoment

    linear = blocks_of(tiny("opt"))[0].linear("q")
    x = torch.randn(500, 64)
    forms = [
        factored(linear, torch.randn(64, 16), torch.randn(16, 64), f) for f in ("pair", "pivoted")
    ]
    for projection in [*forms, gathered(linear, torch.arange(0, 64, 2)), linear]:
        moment = SecondMoment()
        moment.update(x)
        for layer, second in layers_of(projection, moment.value(1)):
            seen: list[torch.Tensor] = []
            hook = layer.register_forward_pre_hook(
                lambda _, given, seen=seen: seen.append(given[0])
            )
            projection(x)
            hook.remove()
            torch.testing.assert_close(
                second, (seen[0].mT @ seen[0] / 500).double(), rtol=1e-3, atol=1e-2
            )


@needs_extra
@pytest.mark.parametrize("to", ["int8", "int4", "gptq"])
@pytest.mark.parametrize("family", ["llama", "opt", "phi3"])
def test_a_job_saves_integers_and_scores_them(
    tmp_path: Path, config: Make, family: str, to: str
) -> None:
    """phi3 fuses projections in its stock form, which is what is saved where nothing is removed."""
    ratio = "ratio=0" if family == "phi3" else "ratio=0.4"
    sizes = [*SIZES, f"model.random.family={family}", "dtype=bfloat16"]
    cfg = config(*sizes, *SHORT, *ROUND, ratio, stage(to), GROUP)
    result = pipeline.run(cfg, tmp_path)
    bits = 8 if to == "int8" else 4
    saved = json.loads((tmp_path / "model" / "config.json").read_text())["quantization_config"]
    assert saved["config_groups"]["group_0"]["weights"]["num_bits"] == bits
    assert saved["ignore"] == ["lm_head"]
    decoder = result.parameters["compressed"]["decoder"]
    apart = result.parameters["compressed"]["total"] - decoder
    least = 2 * apart + decoder * bits / 8
    scales = decoder * (2 / 8 if bits == 4 else 1 / 8)
    assert least < result.bytes["compressed"] < least + scales + 30_000
    assert cells(result)["MiB"] == result.bytes["compressed"] / 2**20
    ours = lorap_exp.load(tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=True)
    assert torch.equal(ours(IDS).logits, theirs(IDS).logits)
    assert not hasattr(ours.config, "quantization_config")
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"integers of {bits} bits" in card and "pip install compressed-tensors" in card


@needs_extra
def test_a_quantised_folder_is_scored_again_and_not_compressed(
    tmp_path: Path, config: Make
) -> None:
    first = pipeline.run(config(*SIZES, *SHORT, *ROUND, "ratio=0.4", stage("int8")), tmp_path / "a")
    path = ["model=custom", f"model.path={tmp_path}/a/model"]
    second = pipeline.run(config(*path, *SHORT, "method=dense"), tmp_path / "b")
    assert [p.nll for p in second.scores.perplexity] == [p.nll for p in first.scores.perplexity]
    with pytest.raises(LorapError, match="whose weights are quantised: method=dense scores it"):
        pipeline.run(config(*path, *SHORT, "method=svd"), tmp_path / "c")


@needs_extra
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["export=dense"], "export must be factored where a stage stores integers"),
        (["model.random.family=gpt2"], "needs linear layers, got 'gpt2'"),
        (["method.stages.quantise.group_size=12"], "group_size must be a multiple of 8|multiple"),
    ],
)
def test_what_it_cannot_do_is_one_sentence(
    tmp_path: Path, config: Make, overrides: list[str], message: str
) -> None:
    with pytest.raises(LorapError, match=message):
        pipeline.run(config(stage("int8"), *overrides), tmp_path)


@needs_extra
def test_the_table_tells_forms_apart(tmp_path: Path, config: Make) -> None:
    dense = ["method=dense", *SIZES, *SHORT]
    jobs = [[], [stage("int8")], [stage("int4")]]
    results = [pipeline.run(config(*dense, *job), tmp_path / str(n)) for n, job in enumerate(jobs)]
    table = frame(results)
    assert table["method"].tolist() == ["dense", "dense + quantise", "dense + quantise"]
    sizes = dict(zip(table["method.stages.quantise.to"], table["MiB"], strict=True))
    assert sizes["-"] > sizes["int8"] > sizes["int4"]
