"""Peak memory of training a replacement online, against what it must hold.

`python -m benchmarks.training_memory` trains a decoder layer in place of a span in the middle of
SmolLM2-135M for a few steps and prints the peak of the stage, above the process before it, beside
the bound: the weights up to the end of the span, the training state of the network (float32
weights, gradients, two moments, the best weights) and the activations of one batch.
"""

import gc
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.cost import configuration, sample
from lorap_exp.methods.contract import Whole
from lorap_exp.methods.stack import build_stack
from lorap_exp.methods.streamline.removal import LayerRemoval
from lorap_exp.models.families import blocks_of
from lorap_exp.models.loading import load_config, load_model
from lorap_exp.planning.spans import divide
from lorap_exp.workspace.progress import PEAK_RESET, host_peak

START, STOP, WINDOW, MICRO = 6, 14, 256, 4


def main() -> None:
    """Print the table."""
    cfg = configuration(
        "method=streamline",
        "training@method.stages.layers.training=small",
        *(
            f"method.stages.layers.training.{setting}"
            for setting in (
                "samples=36",
                "validation_samples=4",
                f"micro_batch={MICRO}",
                "max_steps=4",
            )
        ),
    )
    ((_, step),) = build_stack(cfg.method).steps
    assert isinstance(step, LayerRemoval)
    ids = sample(cfg.model)
    windows = ids.flatten()[: 36 * WINDOW].view(36, WINDOW)
    config = load_config(cfg.model)

    def load() -> Any:
        return load_model(cfg.model, config, torch.device("cpu"), torch.bfloat16, seed=0)

    gc.collect()
    PEAK_RESET.write_text("5")
    before, peaks = host_peak(), []
    dense = load()
    layer = sum(p.numel() for p in blocks_of(dense)[START].module.parameters())
    front = sum(p.numel() for block in blocks_of(dense)[:STOP] for p in block.module.parameters())
    embedding = dense.get_input_embeddings().weight.numel()
    holder = [dense]
    del dense

    def take() -> Any:
        if holder:
            return holder.pop()
        peaks.append(host_peak())  # training is over: the layers behind the span come back
        return load()

    def bars(*_: str) -> Any:
        gc.collect()
        PEAK_RESET.write_text("5")
        return iter

    edits = divide(START, STOP, "transformer", 1, False)
    with tempfile.TemporaryDirectory() as folder:
        part = Whole(
            take, calibration=ids, batch_size=MICRO, read=windows, folder=Path(folder), bars=bars
        )
        step.apply(part, edits, None, {})
    measured = peaks[0] - before
    weights, state = 2 * (front + embedding), 5 * 4 * layer
    mib = 2**20
    print("| what | MiB |\n| --- | --- |")
    print(f"| peak of training above the empty process | {measured / mib:.0f} |")
    print(f"| weights up to the end of the span, with the embedding | {weights / mib:.0f} |")
    print(f"| training state of the network, float32 | {state / mib:.0f} |")
    print(
        f"| left for the activations of {MICRO} x {WINDOW} tokens | "
        f"{(measured - weights - state) / mib:.0f} |"
    )


if __name__ == "__main__":
    main()
