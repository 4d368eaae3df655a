"""Distillation: the loss, what is trained, the budget, and going on after a cut."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from lorap_exp import pipeline
from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.methods.distillation import ROWS, divergence, trained_weights
from lorap_exp.methods.stack import build_stack
from lorap_exp.steps import compress as compression
from tests.methods.stacks import cutting

Make = Callable[..., Config]
STAGE = "method.stages.recovery"
FAST = [
    "method=lorap",
    "+stage@method.stages.recovery=distillation",
    "ratio=0.4",
    "evaluation.zero_shot=null",
    f"{STAGE}.text=embedded",
    f"{STAGE}.length=32",
    f"{STAGE}.tokens=2048",
    f"{STAGE}.validation_samples=8",
    f"{STAGE}.batch_size=8",
    f"{STAGE}.micro_batch=4",
    f"{STAGE}.evaluate_every=2",
    f"{STAGE}.warmup_steps=1",
    f"{STAGE}.learning_rate=0.001",
]


def logits(seed: int) -> Tensor:
    return torch.randn(5, 11, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_the_divergence_of_the_distributions() -> None:
    one, other = logits(0), logits(1)
    before, after = one.log_softmax(-1), other.log_softmax(-1)
    expected = kl_div(after, before, reduction="batchmean", log_target=True)
    torch.testing.assert_close(divergence(one, other, 1.0, None), expected)
    torch.testing.assert_close(divergence(one, other, 1.0, 11), expected)
    assert divergence(one, one, 2.0, 3) == pytest.approx(0, abs=1e-6)
    few = divergence(one, other, 1.0, 3)
    assert 0 < few < expected, "what is grouped cannot tell the distributions further apart"


def test_the_gradient_of_the_divergence() -> None:
    """Of all tokens at a temperature, some rows at a time, against autograd on the whole."""
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(2 * ROWS + 3, 11, generator=generator) for _ in range(2))
    found, slow = (other.clone().requires_grad_(True) for _ in range(2))
    (3 * divergence(one, found, 2.0, None)).backward()
    before, after = ((x / 2).log_softmax(-1) for x in (one, slow))
    (3 * 4 * kl_div(after, before, reduction="batchmean", log_target=True)).backward()
    torch.testing.assert_close(found.grad, slow.grad)


def test_the_embedding_stays(tiny: Callable[..., PreTrainedModel]) -> None:
    names = set(trained_weights(tiny("llama")))
    assert "model.norm.weight" in names and "model.layers.1.mlp.down_proj.weight" in names
    assert not {name for name in names if "embed" in name or "lm_head" in name}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_distillation_lowers_perplexity_at_the_same_size(
    tmp_path: Path, config: Make, dtype: str
) -> None:
    plain = pipeline.run(config(*FAST, f"{STAGE}=null", f"dtype={dtype}"), tmp_path / "plain")
    tuned = pipeline.run(config(*FAST, f"dtype={dtype}"), tmp_path / "tuned")
    losses = [loss for _, loss in tuned.curves["recovery"]["validation"]]
    assert min(losses) < 0.9 * losses[0]
    assert tuned.parameters == plain.parameters and tuned.plan == plain.plan


def test_a_cut_distillation_goes_on_to_the_same_loss(
    tmp_path: Path, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = pipeline.run(config(*FAST), tmp_path / "unbroken")

    with monkeypatch.context() as patched:
        patched.setattr(compression, "bar", cutting)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(config(*FAST), tmp_path / "cut")
    assert pipeline.run(config(*FAST), tmp_path / "cut").curves == unbroken.curves


def test_windows_of_a_file_are_its_documents_joined(tmp_path: Path, config: Make) -> None:
    lines = [f"Line {number} says that {number} is a number." for number in range(200)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    of_file = [f"{STAGE}.text=file", f"{STAGE}.file={tmp_path}/text.txt"]
    result = pipeline.run(config(*FAST, *of_file), tmp_path / "job")
    assert len(result.curves["recovery"]["train"]) == 8
    with pytest.raises(LorapError, match="recovery.tokens must be at most the .* windows of 32"):
        pipeline.run(config(*FAST, *of_file, f"{STAGE}.tokens=1000000"), tmp_path / "more")


def test_time_ends_it_early(tmp_path: Path, config: Make) -> None:
    """A budget of no time is one step, and the rate has fallen to its end."""
    result = pipeline.run(config(*FAST, f"{STAGE}.seconds=1e-6"), tmp_path)
    assert len(result.curves["recovery"]["train"]) == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("tokens=8", "tokens must be at least length x batch_size"),
        ("text=file", "file must be set when text is file"),
        ("seconds=0", "seconds must be greater than 0"),
        ("temperature=0", "temperature must be greater than 0"),
    ],
)
def test_a_wrong_budget_is_refused(config: Make, setting: str, message: str) -> None:
    with pytest.raises(LorapError, match=message):
        build_stack(config(*FAST, f"{STAGE}.{setting}").method)
