"""The training loop: AdamW over optimiser steps, validation watched, best weights kept as a copy.

State lies in safetensors and JSON, so a run that is cut goes on with the same batches, the same
dropout and the same optimiser moments: the order of batches follows from the seed and the step.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from lorap_exp.errors import LorapError
from lorap_exp.workspace.files import replacing
from lorap_exp.workspace.progress import say
from lorap_exp.workspace.team import Team

Example = TypeVar("Example")
DAMAGED = (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError)
"""What reading a training state raises when its files are damaged."""


@dataclass(frozen=True)
class Schedule:
    """Optimisation settings; a step is one optimiser step over `batch_size` examples.

    Attributes:
        decay: shape of the learning rate after warm-up, down to `final_rate` at the last step.
        clip: largest gradient norm.
        loss_scale: factor on the loss, taken off the gradients again.
        evaluate_every: steps between validations, each of which also saves the state.
        seconds: after which training ends, whatever the step; None for no limit.
    """

    learning_rate: float
    warmup_steps: int
    steps: int
    batch_size: int
    micro_batch: int
    weight_decay: float
    clip: float
    evaluate_every: int
    seed: int
    decay: Literal["linear", "cosine"] = "linear"
    final_rate: float = 0.0
    loss_scale: float = 1.0
    seconds: float | None = None

    def diverged(self, what: str) -> str:
        """The sentence for a loss or gradient that is not finite."""
        return (
            f"training: the {what} is not finite; learning_rate must be lower or dtype of a wider "
            f"range, got learning_rate {self.learning_rate:g}"
        )

    def rate(self, step: int, elapsed: float = 0.0) -> float:
        """Learning rate of step 0, 1, ..., steps - 1; it reaches its minimum at the last.

        After `elapsed` of the allowed seconds it has fallen as far as after that share of steps.
        """
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps + 1) / max(self.steps - self.warmup_steps, 1)
        progress = max(progress, min(elapsed / (self.seconds or math.inf), 1.0))
        factor = 1 - progress if self.decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return self.final_rate + (self.learning_rate - self.final_rate) * factor


def loss_scale(dtype: torch.dtype) -> float:
    """The factor on the loss that keeps a model's gradients within the range of its dtype."""
    return 2.0**14 if dtype == torch.float16 else 1.0


def recovery_schedule(settings: Any, steps: int, dtype: torch.dtype, **more: Any) -> Schedule:
    """The schedule of a recovery of so many steps, for a model of a dtype.

    `settings` has learning_rate, warmup_steps, batch_size, micro_batch, evaluate_every and seed.
    """
    return Schedule(
        learning_rate=settings.learning_rate,
        warmup_steps=min(settings.warmup_steps, steps // 2),
        steps=steps,
        batch_size=settings.batch_size,
        micro_batch=settings.micro_batch,
        weight_decay=0.0,
        clip=1.0,
        evaluate_every=settings.evaluate_every,
        seed=settings.seed,
        loss_scale=loss_scale(dtype),
        **more,
    )


@dataclass
class Curve:
    """What was seen: loss of each step, and (step, validation loss) with the best of them."""

    train: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)

    @property
    def best(self) -> tuple[int, float]:
        return min(self.validation, key=lambda point: point[1])

    def summary(self) -> str:
        """One line for a person."""
        step, best = self.best
        return f"validation loss {self.validation[0][1]:.4g} -> {best:.4g} at step {step}"


class Clock:
    """Seconds of training, those before a cut included; the same in all processes."""

    def __init__(self, team: Team, before: float) -> None:
        self._team, self._start = team, time.monotonic() - before

    def elapsed(self) -> float:
        """Seconds since the beginning, the mean over processes."""
        own = torch.tensor([time.monotonic() - self._start], device=self._team.device or "cpu")
        return float(self._team.add(own) / self._team.size)


def train(
    parameters: Mapping[str, nn.Parameter],
    examples: Sequence[Example],
    loss: Callable[[Sequence[Example]], Tensor],
    validate: Callable[[], float],
    *,
    schedule: Schedule,
    folder: Path,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Curve:
    """Train `parameters` in place and leave them at the best validation loss.

    Args:
        parameters: by name; only they change.
        examples: training set.
        loss: mean loss of a micro-batch, differentiable.
        validate: validation loss of the parameters as they are.
        schedule: optimisation settings.
        folder: where the state is kept; a state that is there is gone on from. Processes of one
            launch share it, and each takes its part of every batch.
        progress: wraps the range of steps.

    Raises:
        LorapError: a non-finite loss, with the step.
    """
    optimiser = torch.optim.AdamW(
        list(parameters.values()), lr=0.0, betas=(0.9, 0.999), weight_decay=schedule.weight_decay
    )
    team = Team()
    folder.mkdir(parents=True, exist_ok=True)
    start, curve, before = _restore(parameters, optimiser, folder)
    clock = Clock(team, before)
    team.wait()
    if not team.leads:
        say(f"  process {team.rank} of {team.size} trains with it")
    if start == 0:
        _measure(0, curve, validate, parameters, folder if team.leads else None, schedule=schedule)
    limit = math.inf if schedule.seconds is None else schedule.seconds
    steps = progress(range(start, schedule.steps if before < limit else start))
    for step in steps:
        torch.manual_seed(schedule.seed * 1_000_003 + step)
        batch = _batch(examples, schedule, step)
        total = _accumulate(step, batch, loss, parameters, schedule=schedule, team=team)
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step, clock.elapsed())
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        curve.train.append(total)
        if isinstance(steps, tqdm):
            steps.set_postfix_str(f"loss {total:.4g}", refresh=False)
        done = step + 1
        over = schedule.seconds is not None and clock.elapsed() >= limit
        if done % schedule.evaluate_every == 0 or done == schedule.steps or over:
            _measure(
                done, curve, validate, parameters, folder if team.leads else None, schedule=schedule
            )
            seconds = clock.elapsed()
            if team.leads:
                _save(done, seconds, curve, parameters, optimiser, folder)
        if over:
            break
    team.wait()
    best = load_file(folder / "best.safetensors")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(best[name])
    return curve


def _accumulate(
    step: int,
    batch: Sequence[Example],
    loss: Callable[[Sequence[Example]], Tensor],
    parameters: Mapping[str, nn.Parameter],
    *,
    schedule: Schedule,
    team: Team,
) -> float:
    """Leave the clipped gradient of a batch's mean loss on the parameters; return that loss."""
    own, total = team.part(batch), 0.0
    for first in range(0, len(own), schedule.micro_batch):
        chosen = own[first : first + schedule.micro_batch]
        value = loss(chosen) * (len(chosen) / len(batch))
        if not torch.isfinite(value):
            raise LorapError(schedule.diverged(f"loss of step {step}"))
        (value * schedule.loss_scale).backward()
        total += value.item()
    for parameter in parameters.values():
        if parameter.grad is None and team.size > 1:  # no example of the batch was ours
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad is not None:
            parameter.grad = team.add(parameter.grad) / schedule.loss_scale
    norm = nn.utils.clip_grad_norm_(list(parameters.values()), schedule.clip)
    if not torch.isfinite(norm):
        raise LorapError(schedule.diverged(f"gradient of step {step}"))
    return team.add(torch.tensor([total], device=norm.device)).item()


def _batch(examples: Sequence[Example], schedule: Schedule, step: int) -> list[Example]:
    """Examples of a step: a new permutation each epoch."""
    positions = range(step * schedule.batch_size, (step + 1) * schedule.batch_size)
    orders: dict[int, list[int]] = {}
    found: list[Example] = []
    for epoch, index in (divmod(position, len(examples)) for position in positions):
        if epoch not in orders:
            generator = torch.Generator().manual_seed(schedule.seed * 7919 + epoch)
            orders[epoch] = torch.randperm(len(examples), generator=generator).tolist()
        found.append(examples[orders[epoch][index]])
    return found


def _measure(
    step: int,
    curve: Curve,
    validate: Callable[[], float],
    parameters: Mapping[str, nn.Parameter],
    folder: Path | None,
    *,
    schedule: Schedule,
) -> None:
    """Validate; with a folder, copy the weights when they are the best so far."""
    value = validate()
    if not math.isfinite(value):
        raise LorapError(schedule.diverged(f"validation loss after step {step}"))
    curve.validation.append((step, value))
    if curve.best[0] == step and folder is not None:
        weights = {name: p.detach().cpu().contiguous() for name, p in parameters.items()}
        _write(weights, folder / "best.safetensors")


def _save(
    step: int,
    seconds: float,
    curve: Curve,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    folder: Path,
) -> None:
    state = {}
    for name, parameter in parameters.items():
        moments = optimiser.state[parameter]
        state[f"{name}|weight"] = parameter.detach().cpu().contiguous()
        for key in ("exp_avg", "exp_avg_sq"):
            state[f"{name}|{key}"] = moments[key].cpu().contiguous()
    metadata = {"curve": json.dumps(asdict(curve) | {"step": step, "seconds": seconds})}
    _write(state, folder / "state.safetensors", metadata)


def _write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    with replacing(path) as partial:
        save_file(tensors, partial, metadata)


def finished(folder: Path, schedule: Schedule) -> bool:
    """Whether the state in a folder is that of the last step."""
    path = folder / "state.safetensors"
    try:
        if not path.is_file():
            return False
        seen = _seen(path)
        over = schedule.seconds is not None and seen["seconds"] >= schedule.seconds
        return bool(over or seen["step"] == schedule.steps)
    except DAMAGED:
        return False  # `_restore` says so


def _seen(path: Path) -> dict[str, Any]:
    """Step and curve of a saved state."""
    with safe_open(path, framework="pt") as file:
        raw: dict[str, Any] = json.loads(file.metadata()["curve"])
    return raw


def _restore(
    parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, folder: Path
) -> tuple[int, Curve, float]:
    """The step to go on from, what was seen before it, and the seconds that took."""
    path = folder / "state.safetensors"
    if not path.is_file():
        return 0, Curve(), 0.0
    try:
        raw, state, best = _seen(path), load_file(path), load_file(folder / "best.safetensors")
        curve = Curve(list(raw["train"]), [(s, v) for s, v in raw["validation"]])
        if len(curve.train) != raw["step"] or any(
            best[n].shape != parameters[n].shape for n in best
        ):
            raise ValueError("it is of another training")
        moments = {
            name: [state[f"{name}|{key}"].view_as(p) for key in ("weight", "exp_avg", "exp_avg_sq")]
            for name, p in parameters.items()
        }
    except DAMAGED as error:
        say(f"  warning: the training state in '{folder}' is damaged and begins anew: {error}")
        return 0, Curve(), 0.0
    with torch.no_grad():
        for name, parameter in parameters.items():
            weight, first, second = moments[name]
            parameter.copy_(weight)
            optimiser.state[parameter] = {
                "step": torch.tensor(float(raw["step"])),
                "exp_avg": first.to(parameter),
                "exp_avg_sq": second.to(parameter),
            }
    return raw["step"], curve, float(raw["seconds"])
