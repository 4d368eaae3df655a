from collections.abc import Callable
from pathlib import Path

import pytest

from lorap_exp import pipeline
from lorap_exp.config import Config
from lorap_exp.reporting.retained import retained


def test_shares_of_the_dense_model(tmp_path: Path, config: Callable[..., Config]) -> None:
    dense = pipeline.run(config("method=dense"), tmp_path / "dense")
    pruned = pipeline.run(config("ratio=0.4"), tmp_path / "pruned")
    fewer = ["evaluation.perplexity.max_tokens=1024", "evaluation.zero_shot=null"]
    other = pipeline.run(config("ratio=0.4", *fewer), tmp_path / "other")
    table = retained([pruned, dense, other])
    assert list(table["method"]) == ["lorap"]
    after, before = (r.scores.means()["mean7_paper"]["value"] for r in (pruned, dense))
    assert table["classification %"][0] == pytest.approx(100 * after / before)
    label = dense.scores.perplexity[0].label
    expected = pruned.scores.perplexity[0].perplexity / dense.scores.perplexity[0].perplexity
    assert table[f"perplexity x, {label}"][0] == pytest.approx(expected)
    assert retained([pruned]).empty
