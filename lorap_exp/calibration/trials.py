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
from torch.nn.functional import log_softmax

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
    rewritings: Callable[[Block], Sequence[Callable[[Block], None]]],
    how: Walk,
    progress: Callable[[Iterable[Any]], Iterable[Any]],
) -> dict[int, list[float]]:
    """KL(original, changed) of the next token in nats, for each block alone and each rewriting.

    Args:
        source: not changed.
        ids: tokens (samples, length).
        rewritings: of a block; each rewrites a copy of it. There are as many for every block.
        how: batch size and place of hidden states.
        progress: wraps the blocks.
    """
    original = open_stream(source, ids, how.batch_size, how.place)
    changed: dict[tuple[int, int], Stream] = {}
    for position, block in enumerate(progress(source.blocks)):
        with source.opened(block, rewrite=False, original=True):
            changed = {n: run_batches(block.module, position, s) for n, s in changed.items()}
            ways = rewritings(block) if block.family.matrices else ()
            for number, rewrite in enumerate(ways):
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
        weights = before.exp()
        for key, stream in changed.items():
            after = _log_probabilities(source, stream[number], few)
            lost[key] += float((before - after).mul_(weights).sum(dtype=torch.float64))
    found: dict[int, list[float]] = {}
    for (index, _), total in lost.items():
        found.setdefault(index, []).append(total / tokens)
    return found


def _log_probabilities(source: Source, hidden_BTH: Tensor, ids_BT: Tensor) -> Tensor:
    logits = logits_after(source, hidden_BTH[:, ::STRIDE], ids_BT)
    return log_softmax(logits.float(), -1)
