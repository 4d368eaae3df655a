"""Training of replacement networks: towards hidden states, or on the next token.

LLM-Streamline, arXiv 2403.19135, section 3.2; stages follow one another, each with its own
optimiser and state, and go on where they were cut.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from transformers import PreTrainedModel

from lorap_exp.methods.streamline.networks import (
    Front,
    mapping_loss,
    mean_over,
    mixed_precision,
    relative_error,
)
from lorap_exp.methods.streamline.states import Cache, Progress, States
from lorap_exp.models.families import blocks_of
from lorap_exp.models.layout import shortened
from lorap_exp.planning.edits import Edit
from lorap_exp.training.loop import Curve, Schedule, finished, loss_scale, train

Stage = Literal["mse", "nmse", "lm"]
Bars = Callable[[str, str], Progress]
"""(label, unit) -> a progress bar."""


@dataclass(frozen=True, config={"extra": "forbid"})
class Training:
    """How a replacement is trained; a step is one optimiser step over `batch_size` windows.

    Attributes:
        stages: one after the other: mse (towards the hidden states of the original model), nmse
            (the same, relative to their norms: `relative_error`; ours), lm (next-token loss of the
            shortened model).
        text: packed into windows of `length` tokens; `split` of it.
        samples: windows in all; the first `validation_samples` are held out and share no document
            with the rest.
        warmup: share of the steps.
        cache: hidden states computed in each step (none), or kept in ram or on disk.
    """

    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    text: Literal["c4", "wikitext2", "embedded"]
    split: Literal["train", "validation"]
    samples: Annotated[int, Field(ge=2)]
    validation_samples: Annotated[int, Field(ge=1)]
    length: Annotated[int, Field(ge=2)]
    learning_rate: Annotated[float, Field(gt=0)]
    final_rate: Annotated[float, Field(ge=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    epochs: Annotated[int, Field(ge=1)]
    max_steps: Annotated[int, Field(ge=1)] | None
    batch_size: Annotated[int, Field(ge=1)]
    micro_batch: Annotated[int, Field(ge=1)]
    clip: Annotated[float, Field(gt=0)]
    evaluate_every: Annotated[int, Field(ge=1)]
    cache: Cache
    seed: int

    def __post_init__(self) -> None:
        if len(set(self.stages)) < len(self.stages):
            raise ValueError(f"stages must name each stage once, got {list(self.stages)}")
        if self.final_rate > self.learning_rate:
            raise ValueError(
                f"final_rate must be at most learning_rate ({self.learning_rate}), "
                f"got {self.final_rate}"
            )
        if self.validation_samples >= self.samples:
            raise ValueError(
                f"validation_samples must be below samples ({self.samples}), "
                f"got {self.validation_samples}"
            )

    def schedule(self, dtype: torch.dtype) -> Schedule:
        """Optimisation settings for a model of this dtype."""
        steps = max(1, self.epochs * (self.samples - self.validation_samples) // self.batch_size)
        steps = steps if self.max_steps is None else min(steps, self.max_steps)
        return Schedule(
            learning_rate=self.learning_rate,
            final_rate=self.final_rate,
            decay="cosine",
            warmup_steps=min(round(self.warmup * steps), steps - 1),
            steps=steps,
            batch_size=self.batch_size,
            micro_batch=self.micro_batch,
            weight_decay=self.weight_decay,
            clip=self.clip,
            evaluate_every=self.evaluate_every,
            seed=self.seed,
            loss_scale=loss_scale(dtype),
        )


class Trainer:
    """Trains the networks of one removal, in place, on windows whose first ones are held out.

    Args:
        settings: schedule and stages.
        arrangement: of several networks.
        windows: training tokens (samples, T).
        dtype: of the frozen model.
        folder: where each stage keeps its state.
        bars: progress bars.
    """

    def __init__(
        self,
        settings: Training,
        arrangement: Literal["series", "segments"],
        *,
        windows: Tensor,
        dtype: torch.dtype,
        folder: Path,
        bars: Bars,
    ) -> None:
        self._settings, self._arrangement = settings, arrangement
        self._windows, self._dtype, self._folder, self._bars = windows, dtype, folder, bars

    def match(self, stage: Stage, front: Front, networks: nn.ModuleDict) -> Curve:
        """Stage mse or nmse: towards the original model's hidden states at the span's end."""
        states = States(front, self._windows)
        shown = self._bars("hidden states", "batch")
        if not finished(self._folder / stage, self._settings.schedule(self._dtype)):
            states.keep(self._settings.cache, self._folder, self._settings.micro_batch, shown)
        modules = list(networks.values())
        error = relative_error if stage == "nmse" else mse_loss

        def loss(numbers: Sequence[int]) -> Tensor:
            inputs, calls = states[numbers]
            with mixed_precision(self._dtype, front.device):
                return mapping_loss(modules, inputs, calls, self._arrangement, error)

        return self._fit(stage, networks, loss)

    def predict(
        self, dense: PreTrainedModel, edits: Sequence[Edit], networks: nn.ModuleDict
    ) -> Curve:
        """Stage lm: next-token loss of the shortened model; only the networks change."""
        model = shortened(dense, edits, {int(s): network for s, network in networks.items()})
        placed = nn.ModuleDict(
            {str(b.index): b.module for b in blocks_of(model) if str(b.index) in networks}
        ).requires_grad_(True)

        def loss(numbers: Sequence[int]) -> Tensor:
            ids = self._windows[numbers].to(model.device)
            with mixed_precision(self._dtype, model.device):
                return model(input_ids=ids, labels=ids, use_cache=False).loss

        return self._fit("lm", placed, loss)

    def _fit(
        self, stage: Stage, networks: nn.ModuleDict, loss: Callable[[Sequence[int]], Tensor]
    ) -> Curve:
        numbers, held = list(range(len(self._windows))), self._settings.validation_samples
        return train(
            dict(networks.named_parameters()),
            numbers[held:],
            loss,
            mean_over(loss, numbers[:held], self._settings.micro_batch),
            schedule=self._settings.schedule(self._dtype),
            folder=self._folder / stage,
            progress=self._bars(stage, "step"),
        )
