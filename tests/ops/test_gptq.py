"""Rounding to integers: against nearest, against the algorithm written out, and its identities."""

import pytest
import torch
from torch import Tensor

from lorap_exp.ops.gptq import feed_back, group_scales, nearest, output_moment, restored

GROUP, BITS, RIDGE = 8, 4, 0.01


def problem(seed: int, inputs: int = 48) -> tuple[Tensor, Tensor]:
    """A weight, and the second moment of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(24, inputs, generator=generator, dtype=torch.float64)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(400, inputs, generator=generator, dtype=torch.float64) @ mix
    return W, x.mT @ x / len(x)


def loss(W: Tensor, rounded: Tensor, second: Tensor) -> float:
    return float(torch.trace((rounded - W) @ second @ (rounded - W).mT))


def slow(W: Tensor, second: Tensor, scale: Tensor) -> Tensor:
    """Optimal brain surgeon, one column a time, with the inverse of what is left anew each time."""
    ridge = RIDGE * second.diagonal().mean() * torch.eye(len(second), dtype=second.dtype)
    H, left, found = second + ridge, W.clone(), torch.zeros_like(W)
    todo = H.diagonal().argsort(descending=True, stable=True).tolist()
    while todo:
        inverse, j = torch.linalg.inv(H[todo][:, todo]), todo[0]
        s = scale[:, j // GROUP]
        found[:, j] = (left[:, j] / s).round().clamp(-8, 7)
        error = left[:, j] - s * found[:, j]
        left[:, todo] -= torch.outer(error / inverse[0, 0], inverse[0])
        todo = todo[1:]
    return found


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_surgeon_written_out(seed: int) -> None:
    W, second = problem(seed)
    scale = group_scales(W, BITS, GROUP)
    found = feed_back(W, second, scale, bits=BITS, ridge=RIDGE)
    assert torch.equal(found.double(), slow(W, second, scale))


def test_columns_beyond_one_product_are_corrected_too() -> None:
    W, second = problem(0, inputs=200)
    scale = group_scales(W, BITS, GROUP)
    found = feed_back(W, second, scale, bits=BITS, ridge=RIDGE)
    assert torch.equal(found.double(), slow(W, second, scale))


@pytest.mark.parametrize("seed", range(4))
def test_its_error_on_the_inputs_is_below_that_of_nearest(seed: int) -> None:
    W, second = problem(seed)
    scale = group_scales(W, BITS, GROUP)
    fed = restored(feed_back(W, second, scale, bits=BITS, ridge=RIDGE), scale)
    plain = restored(nearest(W, scale, BITS), scale)
    assert loss(W, fed, second) < 0.8 * loss(W, plain, second)
    assert loss(W, fed, torch.eye(48).double()) > loss(W, plain, torch.eye(48).double())


def test_inputs_that_do_not_correlate_give_the_nearest() -> None:
    W, _ = problem(0)
    second = torch.diag(torch.rand(48, dtype=torch.float64) + 0.1)
    scale = group_scales(W, BITS, GROUP)
    found = feed_back(W, second, scale, bits=BITS, ridge=RIDGE)
    assert torch.equal(found, nearest(W, scale, BITS))


@pytest.mark.parametrize("bits", [4, 8])
def test_nearest_is_within_half_a_step(bits: int) -> None:
    """But for the largest of a group, which the range may cut by half a step more."""
    W, _ = problem(0)
    scale = group_scales(W, bits, GROUP)
    integers = nearest(W, scale, bits)
    assert integers.min() >= -(2 ** (bits - 1)) and integers.max() <= 2 ** (bits - 1) - 1
    apart = (restored(integers, scale) - W).unflatten(1, (-1, GROUP)).abs() / scale[..., None]
    inside = integers.unflatten(1, (-1, GROUP)) < 2 ** (bits - 1) - 1
    assert apart[inside].max() <= 0.5 + 1e-9 and apart.max() <= 1


def test_a_group_of_zeros_stays_zero() -> None:
    W, _ = problem(0)
    W[:, :GROUP] = 0
    scale = group_scales(W.bfloat16(), BITS, GROUP)
    assert scale.dtype == torch.bfloat16 and torch.equal(scale[:, 0], torch.ones(24).bfloat16())
    assert restored(nearest(W, scale, BITS), scale)[:, :GROUP].abs().max() == 0


def test_inputs_of_nothing_are_refused() -> None:
    W, second = problem(0)
    with pytest.raises(ValueError, match="zero or not finite"):
        feed_back(W, second * 0, group_scales(W, BITS, GROUP), bits=BITS, ridge=RIDGE)


def test_the_moment_of_outputs_is_that_of_outputs() -> None:
    x, W, b = (torch.randn(*size).double() for size in ((50, 6), (4, 6), (4,)))
    for bias in (None, b):
        y = x @ W.mT + (0 if bias is None else bias)
        found = output_moment(x.mT @ x / 50, x.mean(0), W, bias)
        torch.testing.assert_close(found, y.mT @ y / 50)
