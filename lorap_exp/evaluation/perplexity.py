"""Perplexity over non-overlapping chunks: exp of the mean negative log-likelihood.

The text is tokenised once, cut into chunks of L tokens (the tail is dropped), and the L - 1
shifted tokens of each chunk are scored. No batch's logits exist as a whole (`head.py`), so chunks
may be long. Shapes: B chunks, T = L tokens.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorap_exp.calibration.observe import run_batches
from lorap_exp.calibration.stream import Place, entered, open_stream
from lorap_exp.data.source import Text
from lorap_exp.errors import LorapError
from lorap_exp.evaluation.head import Head
from lorap_exp.evaluation.profiles import Profile
from lorap_exp.models.source import Source

BATCH_TOKENS = 8192
"""Tokens of a batch at most: long chunks need the memory of many short ones."""


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
    return cut(text, encode(text, tokenizer, bos), length, max_tokens, bos)


def encode(text: Text, tokenizer: PreTrainedTokenizerBase, bos: int | None) -> Tensor:
    """All tokens of a text, (n,), int32; with `bos` without special tokens."""
    encoded = tokenizer(text.content, verbose=False, add_special_tokens=bos is None)
    return torch.tensor(encoded["input_ids"], dtype=torch.int32)


def cut(text: Text, ids: Tensor, length: int, max_tokens: int | None, bos: int | None) -> Tensor:
    """The chunks of a text whose tokens are known; see `tokenize`."""
    ids = ids.long()
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
    head, total = Head(model), 0.0
    done = 0
    for batch_BT in progress(batches_of(chunks, batch_size)):
        total += _nll(head, batch_BT, done)
        done += len(batch_BT)
    return total / (chunks.numel() - len(chunks))


def nll_of(
    source: Source,
    chunks: Tensor,
    batch_size: int,
    place: Place,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> float:
    """`mean_nll` of a model in memory, `streamed_nll` of one whose blocks come from disk."""
    if source.streamed:
        return streamed_nll(source, chunks, batch_size, place, progress)
    return mean_nll(source.model, chunks, batch_size, progress)


@torch.inference_mode()
def streamed_nll(
    source: Source,
    chunks: Tensor,
    batch_size: int,
    place: Place,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> float:
    """`mean_nll` of a model whose blocks come from disk: each is read once for the whole text.

    `place` is where the hidden states of the text wait between blocks.
    """
    batches = batches_of(chunks, batch_size)
    stream = open_stream(source, chunks, len(batches[0]), place)
    with entered(source.blocks, None):
        head = Head(source.model)
    for position, block in enumerate(progress(source.blocks)):
        with source.opened(block, rewrite=False):
            stream = run_batches(block.module, position, stream)
    total, done = 0.0, 0
    for number, batch_BT in enumerate(batches):
        with entered(source.blocks, stream[number]):
            total += _nll(head, batch_BT, done)
        done += len(batch_BT)
    return total / (chunks.numel() - len(chunks))


def batches_of(chunks: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Batches of chunks, of at most `BATCH_TOKENS` tokens."""
    return chunks.split(max(1, min(batch_size, BATCH_TOKENS // chunks.shape[1])))


def _nll(head: Head, batch_BT: Tensor, done: int) -> float:
    ids_BT = batch_BT.to(head.model.device)
    places = torch.arange(ids_BT.numel(), device=ids_BT.device).view(ids_BT.shape)[:, :-1]
    found, _ = head.log_likelihoods(ids_BT, places.flatten(), ids_BT[:, 1:].flatten())
    nll = -found.double().sum().item()
    if not math.isfinite(nll):
        raise LorapError(
            f"perplexity: the loss of chunks {done} to {done + len(batch_BT) - 1} is not finite"
        )
    return nll


def evaluate_perplexity(
    source: Source,
    chunks: Tensor,
    *,
    place: Place = "device",
    text: Text,
    profile: Profile,
    batch_size: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Perplexity:
    """Perplexity of a model on the chunks of a text."""
    start = time.perf_counter()
    nll = nll_of(source, chunks, batch_size, place, progress)
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
