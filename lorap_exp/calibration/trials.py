"""What the model loses when one block alone is rewritten, in one or several ways.

It is measured at the logits.

All trials share one pass: the streams of the models in which an earlier block was rewritten run
beside the original one, so each block is opened once, in memory or from disk.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from lorap_exp.calibration.observe import run_batches
from lorap_exp.calibration.stream import Stream, logits_after, open_stream
from lorap_exp.calibration.walk import Walk
from lorap_exp.models.families import Block
from lorap_exp.models.source import Source

STRIDE = 2
"""Logits are compared at every second position: neighbours say much the same."""


@torch.no_grad()
def trial_walk(
    source: Source,
    ids: Tensor,
    rewrites: Sequence[Callable[[Block], None]],
    how: Walk,
    progress: Callable[[Iterable[Any]], Iterable[Any]],
) -> dict[int, list[float]]:
    """KL(original, changed) of the next token in nats, for each block alone and each rewriting.

    Args:
        source: not changed.
        ids: tokens (samples, length).
        rewrites: each rewrites a copy of a block.
        how: batch size and place of hidden states.
        progress: wraps the blocks.
    """
    original = open_stream(source, ids, how.batch_size, how.place)
    changed: dict[tuple[int, int], Stream] = {}
    for position, block in enumerate(progress(source.blocks)):
        with source.opened(block, rewrite=False, original=True):
            changed = {n: run_batches(block.module, position, s) for n, s in changed.items()}
            for number, rewrite in enumerate(rewrites if block.family.matrices else ()):
                trial = replace(block, module=copy.deepcopy(block.module))
                rewrite(trial)
                changed[block.index, number] = run_batches(trial.module, position, original)
            original = run_batches(block.module, position, original)
    lost = dict.fromkeys(changed, 0.0)
    tokens = 0
    for number, batch in enumerate(ids.split(how.batch_size)):
        few = batch[:, ::STRIDE].to(source.device)
        tokens += few.numel()
        before = _log_probabilities(source, original[number], few)
        for key, stream in changed.items():
            after = _log_probabilities(source, stream[number], few)
            lost[key] += float(kl_div(after, before, reduction="sum", log_target=True))
    return {
        index: [lost[index, number] / tokens for number in range(len(rewrites))]
        for index in dict.fromkeys(index for index, _ in changed)
    }


def _log_probabilities(source: Source, hidden_BTH: Tensor, ids_BT: Tensor) -> Tensor:
    logits = logits_after(source, hidden_BTH[:, ::STRIDE], ids_BT)
    return log_softmax(logits.float(), -1)
