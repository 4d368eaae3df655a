"""Block-wise regression: each compressed block is trained towards the original block's outputs.

From the first block to the last, every weight of a block is trained by AdamW so that the block, on
what the compressed blocks before it give, comes close (mean square) to the hidden states that the
original model has there. No shape changes, and no gradient passes through more than one block.

Source: the block-local refinement of AA-SVD (arXiv 2604.02119; public code atulkumarin/AA-SVD,
compress.py: AdamW, 25 passes over 256 x 2048 tokens, learning rate 1e-4, weight decay .01). Where
ours differs: some windows are held out and the best weights stay, gradients are clipped at 1, and
where layers were removed a block answers for those that went behind it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import mse_loss

from lorap_exp.calibration.observe import run_batches
from lorap_exp.calibration.stream import Stream, open_stream, run_layer
from lorap_exp.errors import LorapError
from lorap_exp.methods.contract import Carry, Step, Whole
from lorap_exp.models.families import Block
from lorap_exp.planning.edits import Edit
from lorap_exp.training.loop import Curve, Schedule, loss_scale, train
from lorap_exp.training.weights import call_with, float32_copies, write_back


@dataclass(frozen=True, config={"extra": "forbid"})
class BlockRegression(Step):
    """Train every block towards the original hidden states behind it, on the calibration windows.

    Attributes:
        epochs: passes over the windows, for each block.
        validation_samples: windows held out; the weights of the best validation loss stay.
        batch_size: windows of a step.
    """

    epochs: Annotated[int, Field(ge=1)]
    validation_samples: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[float, Field(gt=0, le=10)]
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    seed: int

    reach: ClassVar[Literal["block", "model"]] = "model"
    trains: ClassVar[bool] = True

    def sequences(self) -> dict[str, int]:
        return {"validation_samples + batch_size": self.validation_samples + self.batch_size}

    def schedule(self, batches: int, dtype: torch.dtype) -> Schedule:
        """Of one block; an example is a batch."""
        return Schedule(
            learning_rate=self.learning_rate,
            warmup_steps=0,
            steps=self.epochs * batches,
            batch_size=1,
            micro_batch=1,
            weight_decay=self.weight_decay,
            clip=1.0,
            evaluate_every=batches,
            seed=self.seed,
            loss_scale=loss_scale(dtype),
        )

    def apply(
        self, part: Whole, edits: Sequence[Edit], seen: object, carry: Carry
    ) -> Sequence[Edit]:
        """Tune the compressed model in place."""
        assert part.calibration is not None
        held = part.calibration[: self.validation_samples]
        trained = part.calibration[self.validation_samples :]
        trained = trained[: len(trained) // self.batch_size * self.batch_size]
        student, teacher = part.source, part.original()
        inputs = [open_stream(student, ids, self.batch_size, "device") for ids in (trained, held)]
        targets = [open_stream(teacher, ids, self.batch_size, "device") for ids in (trained, held)]
        sizes = [streams[0][0].shape[-1] for streams in (inputs, targets)]
        if sizes[0] != sizes[1]:
            raise LorapError(
                f"block regression must follow stages that keep the hidden size "
                f"({sizes[1]}), got {sizes[0]}"
            )
        originals = list(enumerate(teacher.blocks))
        blocks = list(student.blocks)
        ends = [block.index for block in blocks[1:]] + [len(originals)]
        losses = [0.0, 0.0]
        shown = part.bars("regression", "block")
        for position, block in enumerate(shown(blocks)):
            while originals and originals[0][1].index < ends[position]:
                number, original = originals.pop(0)
                targets = [run_batches(original.module, number, stream) for stream in targets]
            curve = self._fit(block, position, inputs, targets, part)
            for number, value in enumerate((curve.validation[0][1], curve.best[1])):
                losses[number] += value / len(blocks)
            inputs = [run_batches(block.module, position, stream) for stream in inputs]
        part.curves["regression"] = Curve(validation=[(0, losses[0]), (self.epochs, losses[1])])
        return ()

    def _fit(
        self,
        block: Block,
        position: int,
        inputs: Sequence[Stream],
        targets: Sequence[Stream],
        part: Whole,
    ) -> Curve:
        """Train one block; its error is relative to the mean square of the original states."""
        module = block.module
        weights = float32_copies(module.named_parameters())
        states = [targets[1][number].float() for number in range(len(targets[1]))]
        scale = float(torch.stack([batch.square().mean() for batch in states]).mean())
        if not 0 < scale < float("inf"):
            raise LorapError(
                f"the original hidden states behind block {block.index} are not finite"
            )

        def error(which: int, number: int) -> Tensor:
            call = inputs[which].call(number, position)
            output = run_layer(partial(call_with, module, weights), inputs[which][number], call)
            return mse_loss(output.float(), targets[which][number].float()) / scale

        @torch.no_grad()
        def validate() -> float:
            return sum(float(error(1, n)) for n in range(len(inputs[1]))) / len(inputs[1])

        count = len(inputs[0])
        curve = train(
            weights,
            list(range(count)),
            lambda numbers: torch.stack([error(0, number) for number in numbers]).mean(),
            validate,
            schedule=self.schedule(count, part.model.dtype),
            folder=part.folder / f"block_{position}",
        )
        write_back(module, weights)
        return curve
