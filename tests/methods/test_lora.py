"""Recovery: both paths, the shapes they leave, and going on after a cut."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from lorap_exp import pipeline
from lorap_exp.config import Config
from lorap_exp.data.embedded import Embedded
from lorap_exp.data.instructions import collate, encode
from lorap_exp.errors import LorapError
from lorap_exp.methods.contract import Texts
from lorap_exp.methods.lora import LoraRecovery, linear_paths
from lorap_exp.methods.stack import build_stack
from lorap_exp.models.tiny import byte_tokenizer
from lorap_exp.training.loop import Schedule
from tests.methods.stacks import cutting, stack_of, step_of

Make = Callable[..., Config]
FAST = [
    "method=lorap_lora",
    "ratio=0.4",
    "evaluation.zero_shot=null",
    "method.stages.recovery.text=embedded",
    "method.stages.recovery.samples=40",
    "method.stages.recovery.validation_samples=8",
    "method.stages.recovery.cutoff=32",
    "method.stages.recovery.batch_size=8",
    "method.stages.recovery.max_steps=6",
    "method.stages.recovery.evaluate_every=2",
    "method.stages.recovery.learning_rate=0.01",
]


def recovery_of(config: Make, *overrides: str) -> LoraRecovery:
    step = step_of(stack_of(config, *overrides), "recovery")
    assert isinstance(step, LoraRecovery)
    return step


@pytest.mark.parametrize("path", ["direct", "published"])
def test_recovery_lowers_the_loss(tmp_path: Path, config: Make, path: str) -> None:
    plain = pipeline.run(config(*FAST, "method.stages.recovery=null"), tmp_path / "plain")
    tuned = pipeline.run(config(*FAST, f"method.stages.recovery.path={path}"), tmp_path / "tuned")
    losses = [loss for _, loss in tuned.curves["recovery"]["validation"]]
    assert min(losses) < losses[0]
    assert tuned.scores.perplexity[0].perplexity < plain.scores.perplexity[0].perplexity
    before, after = (result.planned.blocks[0] for result in (plain, tuned))
    ranks = [{n: m.rank for n, m in b.matrices.items() if m.rank} for b in (before, after)]
    assert set(ranks[0]) == {"q", "k", "v", "o"}
    assert after.size("ffn") == before.size("ffn") < 176
    if path == "direct":
        assert ranks[1] == ranks[0]
        assert tuned.parameters == plain.parameters
    else:
        break_even = {"q": 32, "k": 64 / 3, "v": 64 / 3, "o": 32}
        larger = {name: rank + 8 for name, rank in ranks[0].items()}
        assert ranks[1] == {n: r for n, r in larger.items() if r < break_even[n]}
    assert not [path for path in (tmp_path / "tuned").glob("group_*") if path.is_dir()]


def test_a_cut_recovery_goes_on_to_the_same_loss(
    tmp_path: Path, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = pipeline.run(config(*FAST), tmp_path / "unbroken")
    from lorap_exp.steps import compress as compression

    monkeypatch.setattr(compression, "bar", cutting)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(config(*FAST), tmp_path / "cut")
    monkeypatch.undo()
    resumed = pipeline.run(config(*FAST), tmp_path / "cut")
    assert resumed.curves["recovery"]["train"] == pytest.approx(
        unbroken.curves["recovery"]["train"], abs=1e-6
    )
    assert resumed.scores.perplexity[0].nll == pytest.approx(
        unbroken.scores.perplexity[0].nll, abs=1e-6
    )


def test_adapters_cover_every_projection(tiny: Callable[..., PreTrainedModel], family: str) -> None:
    paths = linear_paths(tiny(family))
    assert len(paths) == 2 * (6 if family == "opt" else 7)
    assert not any("lm_head" in path for path in paths)


def test_only_answers_are_scored(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    rows = [
        {"instruction": "Say hi.", "input": "", "output": "hi"},
        {"instruction": "x" * 500, "input": "y", "output": "cut off"},
    ]
    examples = encode(rows, tokenizer, cutoff=300)
    assert len(examples) == 1  # nothing of the second answer is left
    ids, labels = examples[0]
    scored = ids[labels != -100]
    assert tokenizer.decode(scored[:-1]) == "hi" and scored[-1] == tokenizer.eos_token_id
    batch, _, mask = collate([examples[0], (ids[:5], labels[:5])], pad=0)
    assert batch.shape == mask.shape == (2, len(ids))
    assert mask.sum().item() == len(ids) + 5


def test_instructions_from_a_file(tmp_path: Path, config: Make) -> None:
    path = tmp_path / "alpaca.json"
    rows = [{"instruction": f"Say {i}.", "input": "", "output": str(i)} for i in range(12)]
    path.write_text(json.dumps(rows))
    recovery = recovery_of(
        config,
        "method=lorap_lora",
        f"method.stages.recovery.file={path}",
        "method.stages.recovery.validation_samples=4",
    )
    assert len(recovery.read(Texts(byte_tokenizer(), Embedded(), None))) == 12


def test_the_learning_rate_reaches_its_minimum_at_the_last_step() -> None:
    for decay in ("linear", "cosine"):
        schedule = Schedule(1e-3, 3, 20, 8, 2, 0.0, 1.0, 5, 0, decay)
        rates = [schedule.rate(step) for step in range(20)]
        assert max(rates) == pytest.approx(1e-3) and rates.index(max(rates)) == 2
        assert rates[-1] == pytest.approx(0, abs=1e-9)
        assert rates[2:] == sorted(rates[2:], reverse=True)


def test_recovery_comes_last(config: Make) -> None:
    method = config("method=lorap_lora").method
    moved = {"recovery": method.stages["recovery"], **method.stages}
    with pytest.raises(LorapError, match="recovery must come last, but attention follows recovery"):
        build_stack(method.model_copy(update={"stages": moved}))


def test_micro_batches_change_nothing(tmp_path: Path, config: Make) -> None:
    losses = []
    for micro in (2, 8):
        run = pipeline.run(
            config(
                *FAST,
                f"method.stages.recovery.micro_batch={micro}",
                "method.stages.recovery.dropout=0",
            ),
            tmp_path / str(micro),
        )
        losses.append(torch.tensor(run.curves["recovery"]["train"]))
    torch.testing.assert_close(losses[0], losses[1], atol=1e-4, rtol=1e-4)


def test_held_out_windows_share_no_document_with_the_rest(config: Make) -> None:
    recovery = recovery_of(config, *FAST)
    tokenizer = byte_tokenizer()
    examples = recovery.read(Texts(tokenizer, Embedded(), bos=0))
    assert all(ids[0] == 0 for ids, _ in examples)
    documents = Embedded().documents("embedded", "train")

    def sources(part: list[Any]) -> set[int]:
        texts = [str(tokenizer.decode(ids[1:])) for ids, _ in part]
        return {i for i, d in enumerate(documents) for text in texts if text in d}

    held, rest = sources(examples[:8]), sources(examples[8:])
    assert held and rest and len(held & rest) <= 1  # a short phrase may stand in two topics


def test_a_text_of_another_source_is_refused(config: Make) -> None:
    recovery = recovery_of(config, *FAST, "method.stages.recovery.text=c4")
    with pytest.raises(LorapError, match=r"method.stages.recovery.text must be embedded"):
        recovery.read(Texts(byte_tokenizer(), Embedded(), None))


def test_float16_losses_are_scaled(config: Make) -> None:
    recovery = recovery_of(config, *FAST)
    assert recovery.schedule(100, torch.float16).loss_scale == 2**14
    assert recovery.schedule(100, torch.bfloat16).loss_scale == 1
