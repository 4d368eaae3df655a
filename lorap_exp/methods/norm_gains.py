"""Norm gains: the gains of all norms are fitted to what the original model predicts, closed form.

Ours; no paper. What a compressed layer writes into the residual stream has lost some features and
much of its scale, and every norm behind it passes that on. A Gauss-Newton step moves all gains at
once: the gradient of KL(original, compressed) of the next token over the calibration windows,
divided by the diagonal of the Fisher information (labels drawn from the model) and damped. The
length of the step is the one that is best on windows held out of it. No shape changes, and one
block at a time is in memory.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorap_exp.calibration.divergence import (
    Targets,
    divergences,
    final_norm,
    gain_gradients,
    norms_of,
    put,
)
from lorap_exp.errors import LorapError
from lorap_exp.methods.contract import Carry, Step, Whole
from lorap_exp.models.source import Source
from lorap_exp.planning.edits import Edit
from lorap_exp.training.loop import Curve
from lorap_exp.workspace.files import replacing

LENGTHS = (0.0, 0.05, 0.1, 0.2, 0.4)
"""Of the steps that are compared; nothing changes where none of them is an improvement."""


@dataclass(frozen=True, config={"extra": "forbid"})
class NormGains(Step):
    """Fit the gains of all norms by Gauss-Newton steps on the calibration windows.

    Attributes:
        steps: each measures the gradients anew.
        samples: calibration windows on which gradients are measured, null for all but `held_out`.
        held_out: windows on which the length of each step is chosen.
        damping: added to the Fisher information of each gain, relative to the mean of its norm.
    """

    steps: Annotated[int, Field(ge=1)]
    samples: Annotated[int, Field(ge=1)] | None
    held_out: Annotated[int, Field(ge=1)]
    damping: Annotated[float, Field(gt=0, allow_inf_nan=False)]

    reach: ClassVar[Literal["block", "model"]] = "model"

    @property
    def needs_whole(self) -> str:
        return ""

    def sequences(self) -> dict[str, int]:
        return {"samples + held_out": (self.samples or 1) + self.held_out}

    def apply(
        self, part: Whole, edits: Sequence[Edit], seen: object, carry: Carry
    ) -> Sequence[Edit]:
        """Give the norms their gains; those that were found are kept until the model is saved."""
        file = part.folder / "gains.safetensors"
        if not file.is_file():
            gains = self._fit(part)
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as partial:
                save_file(gains, partial)
        found = load_file(file)
        for block in part.source.blocks:
            with part.source.amended(block):
                put(norms_of(block), found)
        put(final_norm(part.source), found)
        return ()

    def _fit(self, part: Whole) -> dict[str, Tensor]:
        assert part.calibration is not None
        held, ids = part.calibration[: self.held_out], part.calibration[self.held_out :]
        source, original = part.source, part.original()
        fitted = Targets(original, ids[: self.samples], part.how, part.bars("original", "block"))
        judged = Targets(original, held, part.how)
        gains = current_gains(source)
        curve = Curve()
        for step in range(self.steps):
            shown = part.bars(f"gains, step {step + 1}", "block")
            sums = gain_gradients(source, fitted, part.how, gains, shown)
            towards = {
                name: newton_step(gradient, sums.squares[name], self.damping)
                for name, gradient in sums.gradients.items()
            }
            tried = [
                {n: gain + length * towards[n] for n, gain in gains.items()} for length in LENGTHS
            ]
            lost = divergences(source, judged, part.how, tried)
            if step == 0:
                curve.validation.append((0, lost[0]))
            best = min(range(len(LENGTHS)), key=lost.__getitem__)
            gains = tried[best]
            curve.validation.append((step + 1, lost[best]))
            if best == 0:
                break
        part.curves["gains"] = curve
        return gains


def current_gains(source: Source) -> dict[str, Tensor]:
    """The gains that the norms have, float32."""
    found: dict[str, Tensor] = {}
    for block in source.blocks:
        with source.opened(block, rewrite=False):
            found |= {name: _gain(norm) for name, norm in norms_of(block).items()}
    return found | {name: _gain(norm) for name, norm in final_norm(source).items()}


def _gain(norm: nn.Module) -> Tensor:
    weight: Tensor = norm.weight  # type: ignore[assignment]
    return weight.detach().float().clone()


def newton_step(gradient: Tensor, fisher: Tensor, damping: float) -> Tensor:
    """-gradient / (fisher + damping x its mean), (n,); sums over tokens or means, both alike.

    Raises:
        LorapError: a gradient that is not finite.
    """
    step = -gradient / (fisher + damping * fisher.mean()).clamp_min(1e-30)
    if not torch.isfinite(step).all():
        raise LorapError(
            "calibration: the gradients of norm gains are not finite; try dtype=bfloat16 or "
            "dtype=float32"
        )
    return step
