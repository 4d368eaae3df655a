from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorap_exp.analysis.spectra import Spectrum
from lorap_exp.reporting.drawing import Chart, inline
from lorap_exp.reporting.measures import cost_charts, training_chart
from lorap_exp.reporting.spectra import spectrum_charts
from lorap_exp.reporting.sweep import collect


def draw(chart: Chart) -> Axes:
    axes = Figure().add_subplot()
    chart.draw(axes)
    return axes


def test_costs_by_stage(sweep: Path) -> None:
    results = {str(i): result for i, result in enumerate(collect(sweep).results)}
    time, memory = cost_charts(results)
    bars = [(bar.get_x(), bar.get_width()) for bar in draw(time).patches]  # type: ignore[attr-defined]
    assert bars == [(0, 1), (1, 2)] * len(results), "stacked"
    bars = [(bar.get_x(), bar.get_width()) for bar in draw(memory).patches]  # type: ignore[attr-defined]
    assert bars == [(0, 1), (0, 2)] * len(results), "side by side"
    assert draw(time).get_legend_handles_labels()[1] == ["load", "compress"]
    assert "load host: 1.00 GiB" in inline(memory) and "compress: 2.0 s" in inline(time)


def test_long_curves_are_averaged_and_say_so() -> None:
    chart = training_chart("recovery", {"train": [1.0, 2.0, 3.0] * 201, "validation": [(600, 0.9)]})
    assert "mean of 3 steps" in chart.title
    assert "validation loss 0.9000" in inline(chart)
    line = draw(chart).lines[0]
    assert np.asarray(line.get_ydata()).tolist() == [2.0] * 201
    assert np.asarray(line.get_xdata()).tolist()[:2] == [1.0, 4.0], "the middle of each run"


def test_a_curve_without_validation_is_drawn() -> None:
    assert len(draw(training_chart("t", {"train": [1.0, 2.0]})).lines) == 1


def test_spectra_are_means_over_layers_and_matrices() -> None:
    found = [
        Spectrum(block, "q", "svd", 4, {"0.95": 3}, [0, share, 1])
        for block, share in enumerate((0.4, 0.8))
    ]
    energies, ranks = (draw(chart) for chart in spectrum_charts(found))
    assert np.asarray(energies.lines[0].get_ydata()) == pytest.approx([0, 0.6, 1])
    assert np.asarray(ranks.lines[0].get_ydata()).tolist() == [0.75, 0.75]
