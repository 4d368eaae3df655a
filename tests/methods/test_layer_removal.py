"""Jobs that remove layers: several networks, cuts, whole stacks, bad settings."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from lorap_exp import pipeline
from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.methods.stack import build_stack
from lorap_exp.methods.streamline import training as replacement_training
from lorap_exp.methods.streamline.removal import LayerRemoval
from lorap_exp.planning.edits import Drop, Factor, Insert, Resize
from lorap_exp.training import loop
from tests.methods.stacks import planned, shape_of, stack_of, step_of
from tests.methods.streamline import FAST, T

Make = Callable[..., Config]
Tiny = Callable[..., PreTrainedModel]


@pytest.mark.parametrize("arrangement", ["series", "segments"])
def test_several_networks_and_caches(tmp_path: Path, config: Make, arrangement: str) -> None:
    """Two networks for three layers; states kept in memory or on disk train alike."""
    losses = []
    for cache in ("none", "ram", "disk"):
        cfg = config(
            *FAST,
            "ratio=0.2",
            "method.stages.layers.count=2",
            f"method.stages.layers.arrangement={arrangement}",
            f"{T}.cache={cache}",
        )
        result = pipeline.run(cfg, tmp_path / cache)
        assert [type(edit) for edit in result.plan.edits] == [Insert, Insert]
        assert len(result.plan.removed_layers) == 1 + 2
        assert result.kept == pytest.approx(5 / 6)
        assert not (tmp_path / cache / "training").exists()
        losses.append(result.curves["mse"]["train"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


def test_cut_in_the_middle_of_training(
    tmp_path: Path, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*FAST, f"{T}.stages=[mse,lm]"]
    unbroken = pipeline.run(config(*overrides), tmp_path / "unbroken")
    for stage, steps in (("mse", 3), ("lm", 5)):
        real, left = loop._accumulate, [steps]

        def cut(*arguments: Any, real: Any = real, left: Any = left, **named: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real(*arguments, **named)

        monkeypatch.setattr(loop, "_accumulate", cut)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(config(*overrides), tmp_path / "cut")
        monkeypatch.undo()
        done = loop._seen(tmp_path / "cut" / "training" / stage / "state.safetensors")["step"]
        assert 0 < done < 5, "in the middle of this stage"
    resumed = pipeline.run(config(*overrides), tmp_path / "cut")
    for stage in ("mse", "lm"):
        assert resumed.curves[stage]["train"] == pytest.approx(
            unbroken.curves[stage]["train"], abs=1e-4
        )
    assert resumed.scores.perplexity[0].nll == pytest.approx(
        unbroken.scores.perplexity[0].nll, abs=1e-4
    )


def test_training_always_ends_at_the_lowest_rate(config: Make) -> None:
    stack = stack_of(config, *FAST, f"{T}.warmup=0.99", f"{T}.final_rate=0.00001")
    removal = step_of(stack, "layers")
    assert isinstance(removal, LayerRemoval)
    schedule = removal.training.schedule(torch.float32)
    assert schedule.rate(schedule.steps - 1) == pytest.approx(1e-5)


def interrupt(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def test_the_stack_meets_the_ratio_exactly(tiny: Tiny, config: Make) -> None:
    model = tiny(blocks=12)
    dense = shape_of(model)
    for kind, share in itertools.product(["none", "ffn", "transformer"], [0.3, 0.5, 0.8]):
        stack = stack_of(
            config,
            "method=streamline_lorap",
            f"method.stages.layers.replacement={kind}",
            f"method.stages.layers.share={share}",
        )
        plan = planned(stack, model, 0.4)
        step = sum(
            m.out_features + m.in_features for b in dense.blocks for m in b.matrices.values()
        )  # every rank and width may lose less than one
        assert abs(plan.shape(dense).parameters - 0.6 * dense.parameters) < step
        assert plan.removed_layers
        assert any(isinstance(edit, Factor | Resize) for edit in plan.edits)
        assert type(plan).from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_nothing_is_factorised_where_the_layers_took_it_all(tiny: Tiny, config: Make) -> None:
    """k of 32 x 64 would break even at rank 21.3, so a rank of 21 would still be a loss."""
    none = "method.stages.layers.replacement=none"
    stack = stack_of(config, "method=streamline_lorap", none, "method.stages.layers.share=1")
    (edit,) = planned(stack, tiny(blocks=12), 0.5).edits
    assert isinstance(edit, Drop) and len(edit.layers) == 6


def test_a_whole_stack_runs(tmp_path: Path, config: Make) -> None:
    overrides = [o for o in FAST if not o.startswith(("method=", "ratio="))]
    cfg = config("method=streamline_lorap", *overrides, "ratio=0.5")
    result = pipeline.run(cfg, tmp_path)
    assert result.kept == pytest.approx(0.5, abs=0.03)
    assert (tmp_path / "selection.png").is_file()
    from lorap_exp.commands.info import describe

    text = describe(tmp_path)
    assert "original" in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["replacement=ffn", "criterion=sleb"], "criterion must be one of cosine"),
        (["criterion=fixed"], "start must be set when criterion is fixed"),
        (["start=3"], "start must be set when criterion is fixed"),
        (["replacement=none", "count=2"], "count must be 1 for replacement none"),
        (["num_layers=6"], "the 7 layers to remove must fit into the 6 layers"),
        (["training.validation_samples=24"], r"validation_samples must be below samples \(24\)"),
        (["training.stages=[lm,lm]"], "training.stages must name each entry once"),
        (["training.length=9999"], "training.length must be at most 4096"),
        (["training.samples=1000000"], "training.samples x length must be at most"),
        (
            ["criterion=sleb", "replacement=linear"],
            "method.stages.layers.criterion must be one of .* got sleb$",
        ),
        (["criterion=deepset"], "criterion must be one of"),
    ],
)
def test_bad_settings_are_named(
    tmp_path: Path, config: Make, overrides: list[str], message: str
) -> None:
    settings = [f"method.stages.layers.{override}" for override in overrides]
    with pytest.raises(LorapError, match=message):
        pipeline.run(config(*FAST, *settings), tmp_path)


def test_orders_that_cannot_work_are_refused(config: Make) -> None:
    method = config("method=streamline_lorap").method
    layers = method.stages["layers"]
    others = {name: stage for name, stage in method.stages.items() if name != "layers"}
    wrong = method.model_copy(update={"stages": others | {"layers": layers}})
    with pytest.raises(LorapError, match="layers must be removed once and first"):
        build_stack(wrong)
    twice = method.model_copy(update={"stages": {"layers": layers, "more": layers}})
    with pytest.raises(LorapError, match="removed once and first, .* but more follows layers"):
        build_stack(twice)


def test_a_cut_job_is_not_gone_on_with_under_another_criterion(
    tmp_path: Path, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = ["method.stages.layers.criterion=fixed", "method.stages.layers.start=1"]
    monkeypatch.setattr(replacement_training.Trainer, "match", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(config(*FAST, *fixed), tmp_path)
    monkeypatch.undo()
    with pytest.raises(LorapError, match="holds another configuration's run"):
        pipeline.run(config(*FAST, "method.stages.layers.criterion=deepest"), tmp_path)


def test_a_shared_selection_respects_what_the_replacement_protects(
    tmp_path: Path, config: Make
) -> None:
    """linear_merged needs a layer before the span; the store may hold a choice that begins at 0."""
    few = ["model.random.blocks=4", "seed=11", "method.stages.layers.num_layers=2"]
    for kind in ("none", "linear_merged"):
        cfg = config(*FAST, *few, f"method.stages.layers.replacement={kind}")
        result = pipeline.run(cfg, tmp_path / kind)
        assert len(result.plan.removed_layers) == 2
    assert result.plan.removed_layers[0] > 0


def test_a_shortened_model_can_be_shortened_again(tmp_path: Path, config: Make) -> None:
    none = ["method.stages.layers.replacement=none", "method.stages.layers.criterion=fixed"]
    once = pipeline.run(config(*FAST, *none, "method.stages.layers.start=1"), tmp_path / "once")
    path = ["model=custom", f"model.path={tmp_path}/once/model", "ratio=0.3"]
    rest = [setting for setting in FAST if not setting.startswith(("model.", "ratio="))]
    twice = config(*rest, *none, *path, "method.stages.layers.start=0")
    result = pipeline.run(twice, tmp_path / "twice")
    assert len(result.planned.blocks) < len(once.planned.blocks) < 6


@pytest.mark.parametrize("start", [0, 1, 5])
def test_gemma_with_one_kind_of_layer_left(tmp_path: Path, config: Make, start: int) -> None:
    cfg = config(
        *FAST,
        "model.random.family=gemma3_text",
        "model.random.blocks=2" if start < 2 else "model.random.blocks=6",
        "ratio=0.5" if start < 2 else "ratio=0.17",
        "method.stages.layers.replacement=none",
        "method.stages.layers.criterion=fixed",
        f"method.stages.layers.start={start}",
    )
    assert len(pipeline.run(cfg, tmp_path).plan.removed_layers) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.random.blocks=2"], "2 layers are too few for 1 replacements"),
        (["model.random.blocks=4", "ratio=0.95"], "at most 2 of 4 layers can go"),
        (
            ["ratio=0", "method.stages.layers.num_layers=2"],
            "ratio must be above 0 when .*, got 0 and 2",
        ),
        (
            ["model.random.family=gemma3_text", "method.stages.layers.replacement=linear_merged"],
            "must not be linear_merged for 'gemma3_text'",
        ),
        (["method.protect=[1,1]"], r"method.protect must be \[0, 0\] when layers are only removed"),
        (
            ["method.stages.layers.replacement=ffn", "method.stages.layers.initialisation=first"],
            "initialisation must be random or residual for ffn",
        ),
    ],
)
def test_what_cannot_be_planned_is_named_before_any_weight(
    tmp_path: Path,
    config: Make,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("lorap_exp.steps.compress.load_model", None)
    with pytest.raises(LorapError, match=message):
        pipeline.run(config(*FAST, *overrides), tmp_path)
