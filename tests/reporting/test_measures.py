from pathlib import Path

from lorap_exp.reporting.measures import cost_charts, spectrum_charts, training_chart
from lorap_exp.reporting.sweep import collect


def test_costs_by_stage(sweep: Path) -> None:
    results = {str(i): result for i, result in enumerate(collect(sweep).results)}
    (seconds, memory), stages = cost_charts(results)
    assert stages == ["load", "compress"]
    assert seconds.count('class="bar') == memory.count('class="bar') == 2 * len(results)
    assert "load host: 1.00 GiB" in memory and "compress: 2.0 s" in seconds


def test_long_curves_are_averaged_and_say_so() -> None:
    chart = training_chart("recovery", {"train": [1.0] * 601, "validation": [(600, 0.9)]})
    assert "mean of 3 steps" in chart and "validation loss 0.9000" in chart


def test_spectra_are_means_over_layers() -> None:
    rows = [{"metric": "svd", "matrix": "q", "cumulative": [0, share, 1]} for share in (0.4, 0.8)]
    (chart,) = spectrum_charts(rows)
    assert chart.count("<polyline") == 1 and "svd: energy kept" in chart
