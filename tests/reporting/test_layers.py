"""Sizes by layer, as shares of the dense ones, and the search for layers to remove."""

from pathlib import Path

from lorap_exp.methods.streamline.selection import Selection
from lorap_exp.reporting.drawing import inline
from lorap_exp.reporting.layers import size_maps
from lorap_exp.reporting.selection import plot_selection, selection_charts
from lorap_exp.reporting.sweep import collect


def test_shares_of_the_dense_weights(sweep: Path) -> None:
    text = inline(dict(size_maps(collect(sweep).jobs))["method=lorap,ratio=0.2"])
    share = 8 * (64 + 64) / (64 * 64)
    assert f"layer 0, q: rank 8 of 64, {share:.1%} of the dense weights" in text
    assert "layer 3, ffn: 88 of 176, 50.0%" in text
    assert "layer 0, v: dense" in text


def test_removed_layers_and_what_replaces_them(sweep: Path) -> None:
    text = inline(dict(size_maps(collect(sweep).jobs))["method=lorap_lora,ratio=0.2"])
    assert "layer 1: ffn in place of layers 1 to 2" in text
    assert "layer 2: removed" in text and "layer 3: stays" in text
    assert "layer 1, q" not in text and "layer 2, q" not in text


OUTLINE = "stroke: #e5484d"


def test_layers_that_are_no_span_are_marked_one_by_one(tmp_path: Path) -> None:
    entries = tuple((start, length, 0.5) for length in (1, 2) for start in range(4))
    for criterion, removed, marked in (("influence", (0, 3), 2), ("cosine", (1, 2), 1)):
        selection = Selection(criterion, removed, ((0, 0.1), (1, 0.2)), entries)
        similarities, scores = (inline(chart) for chart in selection_charts(selection))
        assert similarities.count(OUTLINE) == marked
        assert "1 layers from 3: mean cosine 0.500000" in similarities
        gone = "layer 0: 0.1, removed" if criterion == "influence" else "layer 1: 0.2, removed"
        assert gone in scores and scores.count("removed</title>") == 1
        plot_selection(selection, "tiny", tmp_path / "selection.png")
        assert (tmp_path / "selection.png").stat().st_size > 5000
    assert selection_charts(Selection("fixed", (1,), (), ())) == []
