import torch

from lorap_exp.calibration.statistics import SecondMoment, SquaredNorm


def test_squared_norm_is_a_sum_over_tokens_and_a_mean_over_sequences() -> None:
    x = torch.randn(6, 5, 4)
    statistic = SquaredNorm()
    for batch in x.split(4):
        statistic.update(batch.flatten(0, 1))
    torch.testing.assert_close(statistic.value(6), x.square().sum((0, 1)) / 6)


def test_squared_norm_accumulates_bfloat16_in_float32_and_keeps_its_input() -> None:
    x = torch.randn(2, 300, 4).bfloat16()
    before = x.clone()
    statistic = SquaredNorm()
    statistic.update(x.flatten(0, 1))
    assert statistic.value(2).dtype == torch.float32
    torch.testing.assert_close(statistic.value(2), x.double().square().sum((0, 1)).float() / 2)
    assert torch.equal(x, before)


def test_second_moment_and_covariance() -> None:
    x = torch.randn(6, 5, 4) + 1
    statistic = SecondMoment()
    for batch in x.split(4):
        statistic.update(batch.flatten(0, 1))
    flat = x.view(-1, 4).double()
    moments = statistic.value(6)
    torch.testing.assert_close(moments.second, flat.mT @ flat / 30, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moments.covariance, flat.mT.cov(correction=0), atol=1e-5, rtol=1e-5)
