"""Gram matrices of activations, as fast as the device multiplies 16 bit numbers.

The product of two bfloat16 numbers is exact in float32. So where activations are bfloat16, a device
may multiply them as such, or as TF32, and add up in float32: the result is that of a float32
product, up to the order of the additions. float32 activations are multiplied as float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def gram(x_TI: Tensor, y_TJ: Tensor | None = None) -> Tensor:
    """x^T y over all tokens, (I, J) float32; x^T x where y is None."""
    x = x_TI.float()
    y = x if y_TJ is None else y_TJ.float()
    if x_TI.dtype == torch.bfloat16 and (y_TJ is None or y_TJ.dtype == torch.bfloat16):
        with _multiplied_as_they_are(x_TI.device):
            return x.mT @ y
    return x.mT @ y


@contextmanager
def _multiplied_as_they_are(device: torch.device) -> Iterator[None]:
    """Let float32 products read only the bits that bfloat16 has (more in TF32)."""
    backends: Any = torch.backends
    place, precision = (
        (backends.cuda.matmul, "tf32")
        if device.type == "cuda"
        else (backends.mkldnn.matmul, "bf16")
    )
    before = place.fp32_precision
    place.fp32_precision = precision
    try:
        yield
    finally:
        place.fp32_precision = before
