import json
from pathlib import Path

import pytest

from lorap_exp.evaluation.stability import Choices, compare


def test_the_case_of_the_paper(shared: Path) -> None:
    raw = json.loads((shared / "golden" / "streamline" / "stability.json").read_text())
    before = Choices.restore(raw["gold"], raw["nll_before"])
    after = Choices.restore(raw["gold"], raw["nll_after"])
    found = compare("golden", before, after)
    assert found.stability == pytest.approx(raw["expected_stability"], abs=1e-9)
    assert found.agreement == pytest.approx(raw["expected_agreement"], abs=1e-9)


def test_an_unchanged_model_is_stable() -> None:
    one = Choices((0, 1), ((1.0, 2.0), (1.5, 1.6)))
    assert compare("t", one, one).stability == 1
    assert compare("t", one, one).agreement == 1


def test_certain_items_weigh_more_and_large_spreads_do_not_overflow() -> None:
    before = Choices((0, 0), ((0.0, 2000.0), (0.0, 0.1)))
    lost_the_vague = Choices((0, 0), ((0.0, 1.0), (1.0, 0.0)))
    lost_the_certain = Choices((0, 0), ((1.0, 0.0), (0.0, 1.0)))
    assert compare("t", before, lost_the_vague).stability == pytest.approx(1)
    assert compare("t", before, lost_the_certain).stability == pytest.approx(0)
    assert compare("t", before, lost_the_certain).agreement == 0.5


def test_other_items_are_refused() -> None:
    with pytest.raises(ValueError, match="must be the same"):
        compare("t", Choices((0,), ((0.0, 1.0),)), Choices((1,), ((0.0, 1.0),)))
