"""Distillation: the compressed model learns the original one's distribution of the next token.

Forward KL at a temperature over the original's likeliest tokens (Hinton et al., arXiv 1503.02531),
on plain text; every weight of the decoder's layers and the final norm is trained, no shape changes.
The budget is tokens, and seconds where those are over first.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorap_exp.calibration.sampling import packed_windows, read_text, split_file
from lorap_exp.methods.contract import Carry, Step, Texts, Whole
from lorap_exp.models.families import decoder_family
from lorap_exp.planning.edits import Edit
from lorap_exp.training.loop import Schedule, recovery_schedule, train
from lorap_exp.training.weights import call_with, float32_copies, write_back

SETTING = "method.stages.recovery"
ROWS = 16
"""Of the logits, compared at a time."""


@dataclass(frozen=True, config={"extra": "forbid"})
class Distillation(Step):
    """Train the compressed decoder towards the original one's logits.

    Attributes:
        text: windows of a calibration text, or of `file`.
        split: of the text.
        file: a text file, in place of a named text.
        separator: what ends a document in that file.
        length: tokens of a window.
        tokens: of all windows that are trained on; each is seen once.
        seconds: of training, validation included; null for no limit. Where time is over first,
            the learning rate has fallen as if all tokens had been seen.
        validation_samples: windows held out; the weights of the best validation loss stay.
        temperature: by which the logits of both are divided.
        top: tokens of the original's distribution that count, the rest as one; null for all.
    """

    text: Literal["c4", "wikitext2", "embedded", "file"]
    split: Literal["train", "validation"]
    file: str | None
    separator: Literal["line", "blank_line"]
    length: Annotated[int, Field(ge=2)]
    tokens: Annotated[int, Field(ge=2)]
    seconds: Annotated[float, Field(gt=0)] | None
    validation_samples: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(gt=0, le=100)]
    top: Annotated[int, Field(ge=1)] | None
    learning_rate: Annotated[float, Field(gt=0, le=10)]
    warmup_steps: Annotated[int, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=1)]
    micro_batch: Annotated[int, Field(ge=1)]
    evaluate_every: Annotated[int, Field(ge=1)]
    seed: int

    reach: ClassVar[Literal["block", "model"]] = "model"
    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.tokens < self.length * self.batch_size:
            raise ValueError(
                f"tokens must be at least length x batch_size ({self.length * self.batch_size}), "
                f"got {self.tokens}"
            )
        if (self.text == "file") != (self.file is not None):
            raise ValueError(f"file must be set when text is file, and else null, got {self.file}")

    def lengths(self) -> dict[str, int]:
        return {"length": self.length}

    def schedule(self, dtype: torch.dtype) -> Schedule:
        """Optimisation settings for a model of this dtype."""
        steps = self.tokens // (self.length * self.batch_size)
        return recovery_schedule(self, steps, dtype, decay="cosine", seconds=self.seconds)

    def read(self, texts: Texts) -> Tensor:
        """Windows (N, length) of joined documents; the held-out ones first."""
        if self.file is not None:
            documents = split_file(self.file, self.separator, f"{SETTING}.file")
        else:
            documents = read_text(self.text, self.split, texts.data, SETTING)
        return packed_windows(
            documents,
            texts.tokenizer,
            held_out=self.validation_samples,
            samples=self.validation_samples + self.tokens // self.length,
            length=self.length,
            seed=self.seed,
            bos=texts.bos,
            setting=f"{SETTING}.tokens",
        )

    def apply(
        self, part: Whole, edits: Sequence[Edit], seen: object, carry: Carry
    ) -> Sequence[Edit]:
        """Tune the compressed model in place."""
        model, teacher = part.model, part.original().model
        windows: Tensor = part.read
        held, training = windows[: self.validation_samples], windows[self.validation_samples :]
        weights = trained_weights(model)

        def loss(batch: Sequence[Tensor]) -> Tensor:
            ids = torch.stack(list(batch)).to(model.device)
            with torch.no_grad():
                target = teacher(input_ids=ids, use_cache=False).logits
            logits = call_with(model, weights, input_ids=ids, use_cache=False).logits
            return divergence(
                target.flatten(0, 1), logits.flatten(0, 1), self.temperature, self.top
            )

        @torch.no_grad()
        def validate() -> float:
            parts = held.split(self.micro_batch)
            return sum(float(loss(list(rows))) * len(rows) for rows in parts) / len(held)

        part.curves["recovery"] = train(
            weights,
            list(training),
            loss,
            validate,
            schedule=self.schedule(model.dtype),
            folder=part.folder,
            progress=part.bars("recovery", "step"),
        )
        write_back(model, weights)
        return ()


def trained_weights(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Float32 copies of every weight of the layers and of the norm behind them, by name."""
    family = decoder_family(model)
    inside = (f"{family.layers}.", f"{family.final_norm}.")
    return float32_copies(pair for pair in model.named_parameters() if pair[0].startswith(inside))


def divergence(target_NV: Tensor, logits_NV: Tensor, temperature: float, top: int | None) -> Tensor:
    """Mean KL(target, logits) in nats, times the squared temperature, float32.

    With `top` the likeliest tokens of the target keep their own terms, and the others together are
    one more.
    """
    if top is None or top >= target_NV.shape[-1]:
        mean: Tensor = Divergence.apply(target_NV, logits_NV, temperature)
        return mean
    before = (target_NV.float() / temperature).log_softmax(-1)
    after = (logits_NV.float() / temperature).log_softmax(-1)
    before, chosen = before.topk(top)
    before, after = _with_rest(before), _with_rest(after.gather(-1, chosen))
    return (before.exp() * (before - after)).sum(-1).mean() * temperature**2


class Divergence(torch.autograd.Function):
    """KL over all tokens, some rows at a time: its gradient, softmax(after) - softmax(before), is
    known with its value, so nothing of the size of the logits is kept in float32."""

    @staticmethod
    def forward(ctx: Any, target_NV: Tensor, logits_NV: Tensor, temperature: float) -> Tensor:
        total = logits_NV.new_zeros((), dtype=torch.float64)
        difference = torch.empty_like(logits_NV)
        rows = zip(
            target_NV.split(ROWS), logits_NV.split(ROWS), difference.split(ROWS), strict=True
        )
        for target, logits, out in rows:
            before = (target.float() / temperature).log_softmax(-1)
            after = (logits.float() / temperature).log_softmax(-1)
            p = before.exp()
            total += before.sub_(after).mul_(p).sum(dtype=torch.float64)
            out.copy_(after.exp_().sub_(p))
        ctx.save_for_backward(difference)
        ctx.scale = temperature / len(logits_NV)
        return (total / len(logits_NV) * temperature**2).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        (difference,) = ctx.saved_tensors
        return None, difference * (gradients[0] * ctx.scale), None


def _with_rest(log_NK: Tensor) -> Tensor:
    """Log-probabilities with that of everything else behind them."""
    rest = (1 - log_NK.exp().sum(-1, keepdim=True)).clamp_min(1e-8).log()
    return torch.cat([log_NK, rest], -1)
