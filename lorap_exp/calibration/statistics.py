"""Statistics of activations, accumulated batch by batch: `update(...)`, then `value(N)`.

Shapes: T tokens of all sequences of a batch, I input features, O output features. Sums are float32
(float64 for second moments). N is the number of calibration *sequences*: LoRAP's public code
divides by it. Second moments are per token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from lorap_exp.ops.products import gram


class Statistic(Protocol):
    """Accumulates what one place of a block sees; `value` after N sequences.

    `grad` statistics are given the input x (T, I) and the gradient g (T, O) of the summed loss at
    the output; those of both streams the current x and the original model's, or, for `target`
    statistics, the original output; others x alone.
    """

    grad: ClassVar[bool]
    target: ClassVar[bool]
    sampled: ClassVar[bool]
    """Gradients are of labels that are drawn from the model, not of the next tokens."""

    def update(self, x_TI: Tensor, other_TO: Tensor | None = None) -> None: ...
    def value(self, sequences: int) -> Any: ...
    @staticmethod
    def restore(tensors: Mapping[str, Tensor]) -> Any: ...


class _Sum:
    """A running sum of tensors, and the number of tokens in it."""

    grad: ClassVar[bool] = False
    target: ClassVar[bool] = False
    sampled: ClassVar[bool] = False

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.tokens = 0

    def add(self, value: Tensor, tokens: int) -> None:
        self.total = value if self.total is None else self.total.add_(value)
        self.tokens += tokens

    def add_products(self, value: Tensor, tokens: int) -> None:
        """Add a batch's products, float32, to a sum in float64."""
        if self.total is None:
            self.total = torch.zeros_like(value, dtype=torch.float64)
        self.add(value, tokens)

    @property
    def seen(self) -> Tensor:
        assert self.total is not None, "no activation was seen"
        return self.total

    @staticmethod
    def restore(tensors: Mapping[str, Tensor]) -> Any:
        return tensors["value"]


class SquaredNorm(_Sum):
    """s_j = (1/N) sum over sequences and tokens of x_j^2, shape (I,)."""

    def update(self, x_TI: Tensor, other_TO: Tensor | None = None) -> None:
        self.add(x_TI.float().square().sum(0), len(x_TI))

    def value(self, sequences: int) -> Tensor:
        return self.seen / sequences


class MeanAbsolute(_Sum):
    """E[|x_j|] over all tokens, shape (I,)."""

    def update(self, x_TI: Tensor, other_TO: Tensor | None = None) -> None:
        self.add(x_TI.float().abs().sum(0), len(x_TI))

    def value(self, sequences: int) -> Tensor:
        return self.seen / self.tokens


@dataclass(frozen=True)
class Moments:
    """Per token: the second moment E[x x^T] (I, I) and the mean E[x] (I,), float64."""

    second: Tensor
    mean: Tensor

    @property
    def covariance(self) -> Tensor:
        return self.second - torch.outer(self.mean, self.mean)


class SecondMoment(_Sum):
    """E[x x^T] and E[x] over all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.sum: Tensor | None = None

    def update(self, x_TI: Tensor, other_TO: Tensor | None = None) -> None:
        total = x_TI.float().sum(0).double()
        self.sum = total if self.sum is None else self.sum + total
        self.add_products(gram(x_TI), len(x_TI))

    def value(self, sequences: int) -> Moments:
        assert self.sum is not None
        return Moments(self.seen / self.tokens, self.sum / self.tokens)

    @staticmethod
    def restore(tensors: Mapping[str, Tensor]) -> Moments:
        return Moments(tensors["second"], tensors["mean"])


@dataclass(frozen=True)
class DiagonalMoments:
    """Per token: the mean (I,) and the variance (I,) of every feature, float64."""

    mean: Tensor
    variance: Tensor


class Variance(_Sum):
    """Mean and variance of every input feature over all tokens."""

    def update(self, x_TI: Tensor, other_TO: Tensor | None = None) -> None:
        x = x_TI.double()
        self.add(torch.stack([x.sum(0), x.square().sum(0)]), len(x))

    def value(self, sequences: int) -> DiagonalMoments:
        mean, square = (self.seen / self.tokens).unbind()
        return DiagonalMoments(mean, (square - mean.square()).clamp_min(0))

    @staticmethod
    def restore(tensors: Mapping[str, Tensor]) -> DiagonalMoments:
        return DiagonalMoments(tensors["mean"], tensors["variance"])


@dataclass(frozen=True)
class CrossMoments:
    """Per token, x of this model, y of the original one: E[x x^T] and E[y x^T], (I, I)."""

    second: Tensor
    cross: Tensor


class CrossMoment(_Sum):
    """E[x x^T] and E[y x^T] of the inputs that a matrix has now and had in the original model."""

    def update(self, x_TI: Tensor, other_TO: Tensor | None = None) -> None:
        assert other_TO is not None, "a cross moment is of both streams"
        self.add_products(torch.stack([gram(x_TI), gram(other_TO, x_TI)]), len(x_TI))

    def value(self, sequences: int) -> CrossMoments:
        second, cross = (self.seen / self.tokens).unbind()
        return CrossMoments(second, cross)

    @staticmethod
    def restore(tensors: Mapping[str, Tensor]) -> CrossMoments:
        return CrossMoments(tensors["second"], tensors["cross"])


@dataclass(frozen=True)
class TargetMoments:
    """Per token, x the current input and y the original output of a matrix, float64.

    E[x x^T] (I, I), E[y x^T] (O, I), E[x] (I,), E[y] (O,), E[y^2] (O,).
    """

    second: Tensor
    cross: Tensor
    mean: Tensor
    target: Tensor
    square: Tensor


class TargetMoment(_Sum):
    """What least squares needs to fit a matrix's original outputs from its present inputs."""

    target: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.cross: Tensor | None = None
        self.sums: tuple[Tensor, ...] | None = None

    def update(self, x_TI: Tensor, other_TO: Tensor | None = None) -> None:
        assert other_TO is not None, "a target moment is of both streams"
        x, y = x_TI.float(), other_TO.float()
        cross = gram(other_TO, x_TI).double()
        self.cross = cross if self.cross is None else self.cross + cross
        sums = (x.sum(0).double(), y.sum(0).double(), y.double().square().sum(0))
        before = self.sums or tuple(map(torch.zeros_like, sums))
        self.sums = tuple(old + new for old, new in zip(before, sums, strict=True))
        self.add_products(gram(x_TI), len(x_TI))

    def value(self, sequences: int) -> TargetMoments:
        assert self.cross is not None and self.sums is not None
        n = self.tokens
        return TargetMoments(self.seen / n, self.cross / n, *(total / n for total in self.sums))

    @staticmethod
    def restore(tensors: Mapping[str, Tensor]) -> TargetMoments:
        return TargetMoments(**tensors)


class GradientMoment(_Sum):
    """E[g g^T] over all tokens, (O, O) float64: g the gradient of a token's loss sum at an output.

    With E[x x^T] the two factors of the loss's curvature (K-FAC, arXiv 1503.05671), so that
    tr(G dW S dW^T) / 2 predicts what a change dW of the weight costs, in nats per token. The labels
    are drawn from the model: then the moment is the Fisher information, not the empirical one.
    """

    grad: ClassVar[bool] = True
    sampled: ClassVar[bool] = True

    def update(self, x_TI: Tensor, other_TO: Tensor | None = None) -> None:
        assert other_TO is not None, "a gradient moment needs gradients"
        self.add_products(gram(other_TO), len(other_TO))

    def value(self, sequences: int) -> Tensor:
        return self.seen / self.tokens


class GradientSquare(_Sum):
    """The diagonal of `GradientMoment`, (O,) float64."""

    grad: ClassVar[bool] = True
    sampled: ClassVar[bool] = True

    def update(self, x_TI: Tensor, other_TO: Tensor | None = None) -> None:
        assert other_TO is not None, "a gradient moment needs gradients"
        self.add(other_TO.double().square().sum(0), len(x_TI))

    def value(self, sequences: int) -> Tensor:
        return self.seen / self.tokens


class WeightedMoment(_Sum):
    """E[|g|^2 x x^T] / E[|g|^2], (I, I) float64: tokens count as far as the loss hangs on them."""

    grad: ClassVar[bool] = True
    sampled: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.weight: Tensor | None = None

    def update(self, x_TI: Tensor, other_TO: Tensor | None = None) -> None:
        assert other_TO is not None, "a weighted moment needs gradients"
        weights = other_TO.float().square().sum(1)
        total = weights.sum().double()
        self.weight = total if self.weight is None else self.weight + total
        weighted = x_TI.float() * weights[:, None].sqrt()
        narrow = x_TI.dtype == torch.bfloat16  # float16 has no room for small gradients
        self.add_products(gram(weighted.bfloat16() if narrow else weighted), len(x_TI))

    def value(self, sequences: int) -> Tensor:
        assert self.weight is not None
        return self.seen / self.weight.clamp_min(torch.finfo(torch.float64).tiny)


class WeightGradient(_Sum):
    """dL/dW (O, I) of the mean next-token loss over all calibration tokens, float32."""

    grad: ClassVar[bool] = True

    def update(self, x_TI: Tensor, other_TO: Tensor | None = None) -> None:
        assert other_TO is not None, "a weight's gradient needs gradients"
        self.add(gram(other_TO, x_TI), len(x_TI))

    def value(self, sequences: int) -> Tensor:
        return self.seen / self.tokens


STATISTICS: dict[str, type[Statistic]] = {
    "squared_norm": SquaredNorm,
    "mean_absolute": MeanAbsolute,
    "second_moment": SecondMoment,
    "variance": Variance,
    "cross_moment": CrossMoment,
    "target_moment": TargetMoment,
    "gradient_moment": GradientMoment,
    "gradient_square": GradientSquare,
    "weighted_moment": WeightedMoment,
    "weight_gradient": WeightGradient,
}
"""By the name that a probe has for it."""
