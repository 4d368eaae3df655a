"""Block-wise regression: blocks come nearer to the original hidden states at the same size."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lorap_exp import pipeline
from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.steps import compress as compression
from tests.methods.stacks import cutting

Make = Callable[..., Config]
STAGE = "method.stages.regression"
FAST = [
    "+stage@method.stages.regression=block_regression",
    "ratio=0.4",
    "calibration.samples=16",
    "evaluation.zero_shot=null",
    f"{STAGE}.epochs=8",
    f"{STAGE}.validation_samples=4",
    f"{STAGE}.batch_size=4",
    f"{STAGE}.learning_rate=0.001",
]


@pytest.mark.parametrize("method", ["lorap", "aa_svd", "flap", "shortgpt"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_come_nearer_at_the_same_size(
    tmp_path: Path, config: Make, method: str, dtype: str
) -> None:
    many = [f"method={method}", "model.random.blocks=4", f"dtype={dtype}", *FAST]
    plain = pipeline.run(config(*many, f"{STAGE}=null"), tmp_path / "plain")
    tuned = pipeline.run(config(*many), tmp_path / "tuned")
    (_, before), (_, after) = tuned.curves["regression"]["validation"]
    assert after < before
    assert tuned.parameters == plain.parameters and tuned.plan == plain.plan
    nll = [[score.nll for score in one.scores.perplexity] for one in (plain, tuned)]
    assert nll[0] != nll[1], "the trained weights are those that are saved"


def test_a_cut_regression_goes_on_to_the_same_losses(
    tmp_path: Path, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = pipeline.run(config("method=lorap", *FAST), tmp_path / "unbroken")
    with monkeypatch.context() as patched:
        patched.setattr(compression, "bar", cutting)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(config("method=lorap", *FAST), tmp_path / "cut")
    again = pipeline.run(config("method=lorap", *FAST), tmp_path / "cut")
    assert again.curves == unbroken.curves
    assert [s.nll for s in again.scores.perplexity] == [s.nll for s in unbroken.scores.perplexity]


def test_another_hidden_size_is_refused(tmp_path: Path, config: Make) -> None:
    with pytest.raises(LorapError, match="must follow stages that keep the hidden size"):
        pipeline.run(
            config("method=slicegpt", "model.random.hidden_size=128", *FAST), tmp_path / "a"
        )
    with pytest.raises(LorapError, match="must be at most calibration.samples"):
        pipeline.run(config("method=lorap", *FAST, f"{STAGE}.batch_size=64"), tmp_path / "b")
