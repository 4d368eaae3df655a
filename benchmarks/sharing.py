"""What one calibration and one factorisation per matrix save over a sweep of ratios.

`python -m benchmarks.sharing` compresses SmolLM2-135M with `propagation=original` at one ratio and
at five, each with an empty store, side by side in one process.
"""

import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cost import BATCH, REPEATS, Work, configuration, sample, seconds
from lorap_exp.calibration.evidence import Sharing
from lorap_exp.calibration.walk import Walk
from lorap_exp.methods.stack import Stack, build_stack
from lorap_exp.models.loading import load_config, load_model
from lorap_exp.schema.inputs import ModelConfig
from lorap_exp.workspace.store import Store

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)


def sweep(
    settings: ModelConfig, stack: Stack, ids: Tensor, ratios: tuple[float, ...], shared: bool
) -> float:
    """Seconds of calibration, factorisation and pruning over the ratios, without loading."""
    total = 0.0
    with tempfile.TemporaryDirectory() as folder:
        sharing = Sharing(Store(Path(folder), 2**40), {"model": settings.name}, {"ids": "bench"})
        for ratio in ratios:
            model = load_model(
                settings, load_config(settings), torch.device("cpu"), torch.bfloat16, seed=0
            )
            work, how = Work(model, stack, ratio), Walk(BATCH, "original")
            total += seconds(partial(work.compress, ids, how, sharing=sharing if shared else None))
    return total


def main() -> None:
    """Print the table."""
    cfg = configuration()
    stack, ids = build_stack(cfg.method), sample(cfg.model)
    rows = []
    for _ in range(REPEATS):
        one = sweep(cfg.model, stack, ids, RATIOS[-1:], shared=True)
        five = sweep(cfg.model, stack, ids, RATIOS, shared=True)
        alone = sweep(cfg.model, stack, ids, RATIOS, shared=False)
        rows.append((five / one, alone / one))
    shared, unshared = (sorted(values)[REPEATS // 2] for values in zip(*rows, strict=True))
    print("| what | measured | limit |\n| --- | --- | --- |")
    print(f"| five ratios / one ratio, shared store | {shared:.2f} | <= 1.5 |")
    print(f"| five ratios / one ratio, nothing shared | {unshared:.2f} | |")


if __name__ == "__main__":
    main()
