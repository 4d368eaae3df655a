"""Sizes by layer, as shares of the dense ones."""

from pathlib import Path

from lorap_exp.reporting.layers import selection_charts, size_maps
from lorap_exp.reporting.sweep import collect


def test_shares_of_the_dense_weights(sweep: Path) -> None:
    text = dict(size_maps(collect(sweep).jobs))["method=lorap,ratio=0.2"]
    share = 8 * (64 + 64) / (64 * 64)
    assert f"layer 0, q: rank 8 of 64, {share:.1%} of the dense weights" in text
    assert "layer 3, ffn: 88 of 176, 50.0%" in text
    assert "layer 0, v: dense" in text


def test_removed_layers_and_what_replaces_them(sweep: Path) -> None:
    text = dict(size_maps(collect(sweep).jobs))["method=lorap_lora,ratio=0.2"]
    assert "layer 1: ffn in place of layers 1 to 2" in text
    assert "layer 2: removed" in text and "layer 3: stays" in text
    assert "layer 1, q" not in text and "layer 2, q" not in text


def test_layers_that_are_no_span_are_marked_one_by_one() -> None:
    entries = [(start, length, 0.5) for length in (1, 2) for start in range(4)]
    (chart,) = selection_charts({"map": entries, "removed": [0, 3]})
    assert chart.count("marked") == 2
    assert selection_charts({}) == []
