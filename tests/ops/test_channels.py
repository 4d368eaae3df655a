import pytest
import torch

from lorap_exp.ops.channels import keep_channels, weighted_channel_norms


def test_score_equals_the_formula_channel_by_channel() -> None:
    torch.manual_seed(0)
    gate, up, down = torch.randn(6, 4), torch.randn(6, 4), torch.randn(4, 6)
    d_in, d_down = torch.rand(4), torch.rand(6)
    scores = weighted_channel_norms([(gate, d_in), (up, d_in)], [(down, d_down)])
    for c in range(6):
        slow = sum((row[c].abs() * d_in).norm() for row in (gate, up))
        slow += (down[:, c].abs() * d_down[c]).norm()
        torch.testing.assert_close(scores[c], slow)


def test_the_least_important_channels_stay_and_the_next_ones_go() -> None:
    scores = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 0.0])
    kept = keep_channels(scores, width=4, keep_least=1)
    assert kept.tolist() == [0, 2, 4, 5]  # 0.0 is kept, 1.0 and 2.0 go


def test_without_retention_the_best_stay() -> None:
    assert keep_channels(torch.tensor([5.0, 1.0, 4.0]), 2, 0).tolist() == [0, 2]


@pytest.mark.parametrize(("width", "least"), [(4, 0), (2, 3), (2, -1)])
def test_impossible_widths_are_named(width: int, least: int) -> None:
    with pytest.raises(ValueError, match=f"got {least} and {width}"):
        keep_channels(torch.zeros(3), width, least)
