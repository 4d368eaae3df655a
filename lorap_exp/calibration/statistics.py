"""Statistics of a linear layer's input, accumulated batch by batch: `update(x)`, then `value(N)`.

Shapes: T tokens of all sequences of a batch, I input features. Sums are float32 (float64 for
second moments). N is the number of calibration *sequences*: LoRAP's public code divides by it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


class SquaredNorm:
    """s_j = (1/N) sum over sequences and tokens of x_j^2, shape (I,)."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def update(self, x_TI: Tensor) -> None:
        squares = x_TI.float().square().sum(0)
        self.total = squares if self.total is None else self.total + squares

    def value(self, sequences: int) -> Tensor:
        assert self.total is not None, "no activation was seen"
        return self.total / sequences


@dataclass(frozen=True)
class Moments:
    """Per token: the second moment E[x x^T] (I, I) and the mean E[x] (I,), float64."""

    second: Tensor
    mean: Tensor

    @property
    def covariance(self) -> Tensor:
        return self.second - torch.outer(self.mean, self.mean)


class SecondMoment:
    """E[x x^T] and E[x] over all tokens."""

    def __init__(self) -> None:
        self.second: Tensor | None = None
        self.sum: Tensor | None = None
        self.tokens = 0

    def update(self, x_TI: Tensor) -> None:
        x = x_TI.float()
        second, total = (x.mT @ x).double(), x.sum(0).double()
        self.second = second if self.second is None else self.second + second
        self.sum = total if self.sum is None else self.sum + total
        self.tokens += x.shape[0]

    def value(self, sequences: int) -> Moments:
        assert self.second is not None and self.sum is not None, "no activation was seen"
        return Moments(self.second / self.tokens, self.sum / self.tokens)
