import datasets
import pytest
import torch
from transformers.utils import logging as transformers_logging

from lorap_exp.workspace import progress
from lorap_exp.workspace.progress import PEAK_RESET, Meter, hide_other_bars


def test_an_inner_stage_does_not_hide_the_outer_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([5, 90, 40, 30, 1, 7])
    monkeypatch.setattr(progress, "host_peak", lambda: next(peaks))
    meter = Meter(torch.device("cpu"), quiet=True)
    with meter.stage("outer"), meter.stage("inner"):  # 90 before the inner one, 40 in it
        pass
    assert meter.peak_memory == {"inner host": 40, "outer host": 90}
    with meter.stage("later"):
        pass
    assert meter.peak_memory["later host"] == 7


def test_a_stage_that_fails_is_not_recorded() -> None:
    meter = Meter(torch.device("cpu"), quiet=True)
    with pytest.raises(ValueError, match="no"), meter.stage("broken"):
        raise ValueError("no")
    assert meter.seconds == {}


@pytest.mark.skipif(not PEAK_RESET.exists(), reason="the kernel cannot reset the peak")
def test_the_peak_is_that_of_the_stage() -> None:
    meter = Meter(torch.device("cpu"), quiet=True)
    with meter.stage("large"):
        torch.ones(2**26).sum()  # 256 MiB
    with meter.stage("small"):
        pass
    difference = meter.peak_memory["large host"] - meter.peak_memory["small host"]
    assert difference > 0.8 * 2**28


def test_bars_of_other_libraries_are_hidden() -> None:
    hide_other_bars()
    assert datasets.are_progress_bars_disabled()
    assert not transformers_logging.is_progress_bar_enabled()
