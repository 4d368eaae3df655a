"""Perplexity over non-overlapping chunks: exp of the mean negative log-likelihood.

The text is tokenised once, cut into chunks of L tokens (the tail is dropped), and the L - 1
shifted tokens of each chunk are scored. Shapes: B chunks, T = L tokens, V vocabulary.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorap_exp.data.source import Text
from lorap_exp.errors import LorapError
from lorap_exp.evaluation.profiles import Profile


@dataclass(frozen=True)
class Perplexity:
    """A perplexity with everything needed to reproduce it; `nll` is in nats per token."""

    text: str
    label: str
    profile: str
    length: int
    split: str
    sha256: str
    tokens: int
    nll: float
    perplexity: float
    seconds: float


def chunk(ids: Tensor, length: int) -> Tensor:
    """ids (N,) -> (N // length, length); the tail is dropped."""
    return ids[: len(ids) // length * length].view(-1, length)


def tokenize(
    text: Text,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    max_tokens: int | None,
    bos: int | None = None,
) -> Tensor:
    """The chunks of a text, of its first `max_tokens` tokens if given.

    With `bos`, each chunk is that token and length - 1 tokens of the text (Gemma is meaningless
    otherwise), so every one of them is scored.

    Raises:
        LorapError: the text is shorter than one chunk.
    """
    encoded = tokenizer(text.content, verbose=False, add_special_tokens=bos is None)
    ids = torch.tensor(encoded["input_ids"], dtype=torch.long)
    chunks = chunk(ids[:max_tokens], length if bos is None else length - 1)
    if not len(chunks):
        raise LorapError(
            f"evaluation.perplexity.max_tokens must leave at least one chunk of {length} tokens "
            f"of {text.label}, got {len(ids[:max_tokens])} tokens"
        )
    return chunks if bos is None else torch.nn.functional.pad(chunks, (1, 0), value=bos)


@torch.inference_mode()
def mean_nll(
    model: PreTrainedModel,
    chunks: Tensor,
    batch_size: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> float:
    """Mean negative log-likelihood in nats of the shifted tokens of every chunk.

    Raises:
        LorapError: a non-finite loss, with the chunk where it appeared.
    """
    total = 0.0
    batches = chunks.split(batch_size)
    for number, batch_BT in enumerate(progress(batches)):
        ids_BT = batch_BT.to(model.device)
        logits_BTV = model(ids_BT, use_cache=False).logits
        nll = sum_nll(logits_BTV[:, :-1], ids_BT[:, 1:])
        if not math.isfinite(nll):
            raise LorapError(
                f"perplexity: the loss of chunks {number * batch_size} to "
                f"{number * batch_size + len(batch_BT) - 1} is not finite"
            )
        total += nll
    return total / (chunks.numel() - len(chunks))


def sum_nll(logits_BTV: Tensor, targets_BT: Tensor) -> float:
    """Summed cross-entropy in float32, some rows at a time.

    The float32 copy of the logits then stays in cache on a CPU (five times faster than whole
    sequences) and small on a GPU.
    """
    vocabulary = logits_BTV.shape[-1]
    rows = max(1, (2**20 if logits_BTV.device.type == "cpu" else 2**27) // vocabulary)
    total = torch.zeros((), dtype=torch.float64, device=logits_BTV.device)
    for logits_TV, targets_T in zip(logits_BTV, targets_BT, strict=True):
        for logits, targets in zip(logits_TV.split(rows), targets_T.split(rows), strict=True):
            total += cross_entropy(logits.float(), targets, reduction="sum")
    return total.item()


def evaluate_perplexity(
    model: PreTrainedModel,
    chunks: Tensor,
    *,
    text: Text,
    profile: Profile,
    batch_size: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Perplexity:
    """Perplexity of a model on the chunks of a text."""
    start = time.perf_counter()
    nll = mean_nll(model, chunks, batch_size, progress)
    return Perplexity(
        text=text.name,
        label=text.label,
        profile=profile.name,
        length=profile.length,
        split=text.split,
        sha256=text.sha256,
        tokens=chunks.numel() - len(chunks),
        nll=nll,
        perplexity=math.exp(nll),
        seconds=time.perf_counter() - start,
    )
