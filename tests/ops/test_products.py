"""Gram matrices of 16 bit activations, against float64."""

from typing import Any

import pytest
import torch

from lorap_exp.ops.products import gram


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounded_like_a_sum_in_float32(dtype: torch.dtype) -> None:
    """Processors add up in different orders: within two roundings of the sum of all magnitudes."""
    torch.manual_seed(0)
    x, y = torch.randn(512, 96).to(dtype), torch.randn(512, 40).to(dtype)
    true = x.double().mT @ y.double()
    magnitude = x.double().abs().mT @ y.double().abs()
    found = gram(x, y)
    assert found.dtype == torch.float32
    assert ((found - true).abs() <= 2 * torch.finfo(torch.float32).eps * magnitude).all()
    assert torch.equal(gram(x), gram(x, x))


def test_the_setting_is_put_back() -> None:
    backends: Any = torch.backends
    place = backends.mkldnn.matmul
    before = place.fp32_precision
    gram(torch.ones(4, 2, dtype=torch.bfloat16))
    assert place.fp32_precision == before
    a = torch.randn(64, 64)
    assert (a @ a - a.double() @ a.double()).abs().max() < 1e-4, "float32 stays float32"
