"""What a correct LLM-Streamline shows, statement by statement, on random models."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PreTrainedModel

import lorap_exp
from lorap_exp import pipeline
from lorap_exp.calibration.stream import entered
from lorap_exp.config import Config
from lorap_exp.methods.streamline.networks import (
    build_network,
    front_of,
    mapping_loss,
    relative_error,
)
from lorap_exp.models.checkpoint import check_reload, save
from lorap_exp.models.counting import count_parameters
from lorap_exp.models.families import blocks_of, meta_model
from lorap_exp.models.forms import export
from lorap_exp.models.layout import dense_shape, shortened
from lorap_exp.models.tiny import byte_tokenizer
from lorap_exp.planning.edits import Drop, Edit, Insert
from lorap_exp.planning.spans import divide, removed_parameters
from lorap_exp.training import loop
from lorap_exp.training.loop import Schedule
from tests.methods.streamline import FAST, T

Make = Callable[..., Config]
Tiny = Callable[..., PreTrainedModel]
IDS = torch.arange(4 * 24).view(4, 24) % 200
KINDS = ["ffn", "swiglu", "linear", "transformer"]


def networks(model: PreTrainedModel, edits: Sequence[Edit], start: str) -> dict[int, nn.Module]:
    torch.manual_seed(1)
    blocks = blocks_of(model)
    return {
        part.start: build_network(blocks[part.start], model, part, start)  # type: ignore[arg-type]
        for part in edits
        if isinstance(part, Insert)
    }


def test_a_copied_layer_in_place_of_one_changes_nothing(tiny: Tiny, family: str) -> None:
    """Statement 1."""
    model = tiny(family, blocks=4)
    edits = divide(2, 3, "transformer", 1, False)
    modules = networks(model, edits, "first")
    states, calls = front_of(model, edits)(IDS)
    assert mapping_loss(list(modules.values()), states, calls, "series").item() == 0
    assert torch.equal(shortened(model, edits, modules)(IDS).logits, model(IDS).logits)


def test_the_relative_error_sees_every_token_and_the_largest() -> None:
    """One token of a hundred times the norm: the plain mean is its error, here it is half."""
    target = torch.randn(2, 50, 8)
    target[0, 0] *= 100
    errors = 0.1 * target
    for wrong, expected in ((errors, 0.02), (errors * (target.abs() < 9), 0.01)):
        assert relative_error(target + wrong, target).item() == pytest.approx(expected, rel=0.1)
    found = torch.randn_like(target)
    by_hand = torch.stack(
        [
            (f - t).square().sum() / t.square().sum()
            for f, t in zip(found.flatten(0, 1), target.flatten(0, 1), strict=True)
        ]
    )
    whole = (found - target).square().sum() / target.square().sum()
    torch.testing.assert_close(relative_error(found, target), by_hand.mean() + whole)


def test_the_last_target_is_before_the_final_norm(tiny: Tiny, family: str) -> None:
    """Statement 2."""
    model = tiny(family, blocks=4)
    edits = divide(2, 4, "ffn", 1, False)
    seen: list[torch.Tensor] = []
    blocks_of(model)[-1].module.register_forward_hook(lambda *call: seen.append(call[2]))
    normed = model.get_decoder()(IDS).last_hidden_state
    states, _ = front_of(model, edits)(IDS)
    assert torch.equal(states[-1], seen[0])
    assert not torch.allclose(states[-1], normed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_is_trained_with_the_causal_mask(tiny: Tiny, family: str, kind: str) -> None:
    """Statement 3: the published code trains without."""
    model = tiny(family, blocks=4)
    edits = divide(1, 3, kind, 1, False)
    (network,) = networks(model, edits, "random").values()
    states, calls = front_of(model, edits)(IDS)
    changed = states[0].clone()
    changed[:, 10] += 1
    before = network(states[0], *calls[0].args, **calls[0].kwargs)
    after = network(changed, *calls[0].args, **calls[0].kwargs)
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.allclose(before[:, 10], after[:, 10])


@pytest.mark.parametrize("stage", ["mse", "nmse", "lm"])
def test_only_the_network_changes(
    tmp_path: Path, config: Make, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Statement 4."""
    seen: dict[str, Any] = {}
    real = loop.train

    def spy(parameters: Any, *rest: Any, **others: Any) -> Any:
        seen.update(parameters)
        return real(parameters, *rest, **others)

    monkeypatch.setattr("lorap_exp.methods.streamline.training.train", spy)
    cfg = config(
        *FAST,
        f"{T}.stages=[{stage}]",
        f"{T}.learning_rate=0.003",
        "method.stages.layers.initialisation=random",
    )
    result = pipeline.run(cfg, tmp_path)
    (start,) = (part.start for part in result.plan.edits if isinstance(part, Insert))
    assert seen and all(name.startswith(f"{start}.") for name in seen)
    removed = result.plan.removed_layers
    torch.manual_seed(0)
    from lorap_exp.models.loading import load_config, load_model

    dense = load_model(
        cfg.model, load_config(cfg.model), torch.device("cpu"), torch.float32, cfg.seed
    )
    tuned = lorap_exp.load(tmp_path / "model")
    layers = [i for i in range(6) if i not in removed or i == start]
    for position, number in enumerate(layers):
        same = all(
            torch.equal(a, b)
            for a, b in zip(
                blocks_of(dense)[number].module.parameters(),
                blocks_of(tuned)[position].module.parameters(),
                strict=True,
            )
        )
        assert same == (number != start)
    losses = [value for _, value in result.curves[stage]["validation"]]
    assert min(losses) < losses[0]


@pytest.mark.parametrize(
    ("config_", "total", "drop", "replaced"),
    [
        (OPTConfig(hidden_size=2048, num_hidden_layers=24, num_attention_heads=32, ffn_dim=8192),
         1_315_758_080, (6, 22.96), 24.24),
        (OPTConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, ffn_dim=16384,
                   word_embed_proj_dim=4096),
         6_658_473_984, (8, 24.20), 25.20),
        (LlamaConfig(), 6_738_415_616, (8, 24.03), 25.04),
        (LlamaConfig(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40,
                     num_attention_heads=40),
         13_015_864_320, (10, 24.37), 25.20),
        (LlamaConfig(intermediate_size=14336, num_key_value_heads=8, vocab_size=128256),
         8_030_261_248, (8, 21.73), 22.77),
    ],
    ids=["opt-1.3b", "opt-6.7b", "llama-2-7b", "llama-2-13b", "llama-3.1-8b"],
)  # fmt: skip
def test_parameter_counts_of_the_paper(
    config_: Any, total: int, drop: tuple[int, float], replaced: float
) -> None:
    """Statement 6, counted from the architectures without weights."""
    if isinstance(config_, OPTConfig):
        config_.word_embed_proj_dim = config_.hidden_size
    dense = meta_model(config_)
    assert count_parameters(dense)["total"] == total
    layers, percent = drop
    wholes: list[tuple[list[Edit], float]] = [
        ([Drop(tuple(range(2, 2 + layers)))], percent),
        (divide(2, 3 + layers, "ffn", 1, False), replaced),
    ]
    for edits, expected in wholes:
        with torch.device("meta"):
            modules = networks(dense, edits, "random")
        left = count_parameters(shortened(dense, edits, modules))["total"]
        assert 100 * (1 - left / total) == pytest.approx(expected, abs=0.006)
    transformer = divide(2, 3 + layers, "transformer", 1, False)
    shape = dense_shape(config_)
    assert removed_parameters(transformer, shape) == layers * shape.blocks[0].parameters


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [0, 2, 4])
def test_saved_loaded_and_generating(
    tiny: Tiny, family: str, tmp_path: Path, kind: str, start: int
) -> None:
    """Statements 7 and 10; a replacement may stand anywhere, also in front of the cache."""
    model = tiny(family, blocks=6)
    edits = divide(start, start + 2, kind, 1, False)
    modules = networks(model, edits, "random")
    short = shortened(model, edits, {k: module.eval() for k, module in modules.items()})
    exported = export(short, model.config, "factored")
    stock = exported.config.model_type == family
    assert stock == (kind == "transformer")
    save(exported, byte_tokenizer(), tmp_path / "model")
    check_reload(exported, tmp_path / "model", IDS)
    if stock:
        assert not list((tmp_path / "model").glob("*.py"))
        AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    loaded = lorap_exp.load(tmp_path / "model")
    arguments = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[0, :3] = 0
    ids = IDS[:2, 1:11] * mask
    cached, plain = (
        loaded.generate(ids, attention_mask=mask, use_cache=cache, **arguments)
        for cache in (True, False)
    )
    assert torch.equal(cached, plain)
    assert loaded.config.original_layers == [b.index for b in blocks_of(short)]


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("steps", [1, 7, 40])
def test_the_rate_reaches_its_minimum_at_the_last_step(batch: int, steps: int) -> None:
    """Statement 8: the horizon counts optimiser steps whatever the accumulation."""
    schedule = Schedule(
        learning_rate=2e-4,
        final_rate=5e-5,
        decay="cosine",
        warmup_steps=round(0.01 * steps),
        steps=steps,
        batch_size=batch,
        micro_batch=1,
        weight_decay=0.0,
        clip=1.0,
        evaluate_every=1,
        seed=0,
    )
    rates = [schedule.rate(step) for step in range(steps)]
    assert rates[-1] == pytest.approx(5e-5)
    assert all(a >= b for a, b in itertools.pairwise(rates))


def test_none_equals_deleting_the_layers(tiny: Tiny, family: str) -> None:
    """Statement 9, also for layers that are not neighbours."""
    model = tiny(family, blocks=6)
    with entered([blocks_of(model)[i] for i in (1, 4)], None):
        expected = model(IDS).logits
    short = shortened(model, [Drop((1, 4))], {})
    assert torch.equal(short(IDS).logits, expected)
    assert [block.index for block in blocks_of(short)] == [0, 2, 3, 5]
    assert len(blocks_of(model)) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_residual_is_the_identity_at_the_start(tiny: Tiny, family: str, kind: str) -> None:
    model = tiny(family, blocks=4)
    edits = divide(1, 3, kind, 1, kind != "transformer")
    (network,) = networks(model, edits, "residual").values()
    states, calls = front_of(model, edits)(IDS)
    found = network(states[0], *calls[0].args, **calls[0].kwargs)
    torch.testing.assert_close(found, states[0], atol=1e-6, rtol=1e-6)


def test_a_reloaded_short_model_counts_from_itself(tiny: Tiny, tmp_path: Path) -> None:
    """Original numbers stay in its configuration, and layers can be removed once more."""
    model = tiny(blocks=6)
    model.config.eos_token_id = [1, 2, 3, 4, 5, 6]
    short = export(shortened(model, [Drop((1, 2))], {}), model.config, "factored")
    save(short, byte_tokenizer(), tmp_path / "model")
    loaded = lorap_exp.load(tmp_path / "model")
    assert loaded.config.original_layers == [0, 3, 4, 5]
    assert loaded.config.eos_token_id == [1, 2, 3, 4, 5, 6]
    assert [block.index for block in blocks_of(loaded)] == [0, 1, 2, 3]
    with entered([blocks_of(loaded)[3]], None):
        expected = loaded(IDS).logits
    assert torch.equal(shortened(loaded, [Drop((3,))], {})(IDS).logits, expected)
