from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorap_exp import pipeline
from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.evaluation import perplexity, suite, zero_shot
from lorap_exp.evaluation.batches import halving

HOST = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError(HOST)]
)
def test_the_batch_is_halved_until_it_fits(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[int] = []

    def work(size: int) -> str:
        tried.append(size)
        if size > 3:
            raise error
        return "done"

    assert halving(work, 16, "batch_size") == "done"
    assert tried == [16, 8, 4, 2]
    assert "going on with batch_size=2" in capsys.readouterr().err


def test_other_errors_and_a_batch_of_one_are_not_hidden() -> None:
    def wrong(size: int) -> None:
        raise RuntimeError("shapes do not match")

    def never_fits(size: int) -> None:
        raise torch.OutOfMemoryError("CUDA")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        halving(wrong, 16, "batch_size")
    with pytest.raises(LorapError, match="batch_size must fit into memory"):
        halving(never_fits, 4, "batch_size")


def test_a_real_allocation_that_cannot_be_had() -> None:
    def work(size: int) -> int:
        return torch.empty(size * 2**50, dtype=torch.uint8).numel() if size > 1 else 1

    assert halving(work, 2, "batch_size") == 1


def test_an_evaluation_goes_on(
    tmp_path: Path, config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Perplexity and tasks in a job whose memory holds a few sequences give the usual numbers."""
    expected = pipeline.run(config(), tmp_path / "roomy")
    real_perplexity, real_task = perplexity.evaluate_perplexity, zero_shot.evaluate_task
    seen: list[int] = []

    def crowded(real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, batch_size: int, **rest: Any) -> Any:
            seen.append(batch_size)
            if batch_size > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(*arguments, batch_size=batch_size, **rest)

        return run

    monkeypatch.setattr(suite, "evaluate_perplexity", crowded(real_perplexity))
    monkeypatch.setattr(zero_shot, "evaluate_task", crowded(real_task))
    found = pipeline.run(config(), tmp_path / "crowded")
    assert {16, 8, 4} <= set(seen)
    for one, other in zip(found.scores.perplexity, expected.scores.perplexity, strict=True):
        assert one.nll == pytest.approx(other.nll, abs=1e-6)
    assert [t.acc for t in found.scores.tasks] == [t.acc for t in expected.scores.tasks]
