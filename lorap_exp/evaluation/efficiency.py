"""What a compressed model buys: size, work, speed and memory, beside the dense model's.

Both models are in memory and take turns in one process, after a warm-up, synchronised, so that a
machine that slows down slows both. Speeds are given as the median over repeats, their ratio as
the median of the ratios of neighbouring turns with its quartiles.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, StaticCache

from lorap_exp.errors import LorapError
from lorap_exp.schema.evaluation import EfficiencyConfig
from lorap_exp.workspace.progress import PEAK_RESET, host_peak

PREFILL, FIRST = "prefill", "first token"


@dataclass(frozen=True)
class Speed:
    """One measurement: tokens a second (seconds for the first token), over `repeats` turns.

    `ratio` is this model over the dense one (dense over this one for the first token), so above 1
    is faster; `low` and `high` are its quartiles. None for the dense model itself.
    """

    what: str
    value: float
    dense: float | None
    ratio: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Efficiency:
    """Size, work, speed and memory of a model.

    Attributes:
        bytes: of the weights, by part (`embeddings`, `decoder`, `head`; a tied head counts 0).
        macs: multiply-accumulates of one token's matrix products, attention scores left out.
        kv_bytes: key-value cache for each token of a sequence.
        peak_memory: bytes beyond the weights while decoding the largest batch.
        prompt: tokens of a prompt; `tokens` were decoded after it.
    """

    bytes: dict[str, int]
    macs: int
    kv_bytes: int
    peak_memory: int
    prompt: int
    tokens: int
    threads: int
    speeds: tuple[Speed, ...]
    seconds: float

    @staticmethod
    def restore(speeds: Sequence[Mapping[str, Any]], **rest: Any) -> "Efficiency":
        return Efficiency(speeds=tuple(Speed(**speed) for speed in speeds), **rest)

    def ratio(self, what: str) -> float | None:
        """The speed-up of one measurement, where it was taken."""
        return next((speed.ratio for speed in self.speeds if speed.what == what), None)


def measure(
    model: PreTrainedModel, dense: PreTrainedModel | None, asked: EfficiencyConfig
) -> Efficiency:
    """Measure a model, beside the dense one unless it is that itself.

    Raises:
        LorapError: a sequence would be longer than the model's positions.
    """
    start = time.perf_counter()
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None and asked.prompt + asked.tokens > most:
        raise LorapError(
            f"evaluation.efficiency.prompt and tokens must be at most {most} together, the "
            f"positions of the model, got {asked.prompt} and {asked.tokens}"
        )
    compiled = model.device.type == "cuda" if asked.compiled is None else asked.compiled
    works = list(workloads(asked, compiled))
    speeds = [compare(what, work, model, dense, asked.repeats) for what, work in works]
    return Efficiency(
        bytes=weight_bytes(model),
        macs=macs_per_token(model),
        kv_bytes=kv_bytes_per_token(model),
        peak_memory=decoding_memory(model, asked),
        prompt=asked.prompt,
        tokens=asked.tokens,
        threads=torch.get_num_threads(),
        speeds=tuple(speeds),
        seconds=time.perf_counter() - start,
    )


Work = Callable[[PreTrainedModel], float]
"""Runs a model and returns tokens a second, or the reciprocal of seconds for the first token."""


def workloads(asked: EfficiencyConfig, compiled: bool) -> Sequence[tuple[str, Work]]:
    """Everything that is timed, by name."""
    found: list[tuple[str, Work]] = [
        (PREFILL, lambda model: prefill(model, 8, asked.prompt)),
        (FIRST, lambda model: 1 / first_token(model, asked.prompt)),
    ]
    for batch in asked.batches:
        found.append((f"decode x{batch}", Decoder(batch, asked.prompt, asked.tokens, False)))
    if compiled:
        for batch in asked.batches:
            work = Decoder(batch, asked.prompt, asked.tokens, True)
            found.append((f"decode x{batch}, compiled", work))
    return found


def compare(
    what: str, work: Work, model: PreTrainedModel, dense: PreTrainedModel | None, repeats: int
) -> Speed:
    """Time both models in turns; who begins changes with every turn."""
    both = [model] if dense is None else [model, dense]
    for one in both:
        work(one)
    turns = []
    for turn in range(repeats):
        order = both[:: -1 if turn % 2 else 1]
        measured = {id(one): work(one) for one in order}
        turns.append([measured[id(one)] for one in both])
    own = median(turn[0] for turn in turns)
    if dense is None:
        return Speed(what, _seconds(what, own), None, None, None, None)
    ratios = [turn[0] / turn[1] for turn in turns]
    low, _, high = quantiles(ratios, n=4, method="inclusive")
    theirs = _seconds(what, median(turn[1] for turn in turns))
    return Speed(what, _seconds(what, own), theirs, median(ratios), low, high)


def _seconds(what: str, rate: float) -> float:
    return 1 / rate if what == FIRST else rate


@torch.inference_mode()
def prefill(model: PreTrainedModel, batch: int, length: int) -> float:
    """Tokens a second of prompts without a cache, logits of the last position only."""
    ids = prompts(model, batch, length)
    begin = now(model)
    model(ids, use_cache=False, logits_to_keep=1)
    return ids.numel() / (now(model) - begin)


@torch.inference_mode()
def first_token(model: PreTrainedModel, length: int) -> float:
    """Seconds from one prompt to its first token, the cache being filled."""
    ids = prompts(model, 1, length)
    begin = now(model)
    cache = DynamicCache(config=model.config)
    model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits.argmax(-1)
    return now(model) - begin


@dataclass
class Decoder:
    """Greedy decoding with a cache: tokens a second after the prompt, over the whole batch.

    Compiled, the cache has a fixed size and one step is compiled for each model.
    """

    batch: int
    prompt: int
    tokens: int
    compiled: bool

    def __post_init__(self) -> None:
        self._steps: dict[int, Callable[..., Any]] = {}

    @torch.inference_mode()
    def __call__(self, model: PreTrainedModel) -> float:
        ids = prompts(model, self.batch, self.prompt)
        length = self.prompt + self.tokens
        cache = (
            StaticCache(config=model.config, max_cache_len=length)
            if self.compiled
            else DynamicCache(config=model.config)
        )
        token = self._next(model, ids, cache, 0)
        step = self._step(model)
        begin = now(model)
        for at in range(self.prompt, length - 1):
            token = self._next(step, token, cache, at)
        return self.batch * (self.tokens - 1) / (now(model) - begin)

    def _step(self, model: PreTrainedModel) -> Callable[..., Any]:
        if not self.compiled:
            return model
        if id(model) not in self._steps:
            self._steps[id(model)] = torch.compile(model.forward, mode="reduce-overhead")
        return self._steps[id(model)]

    @staticmethod
    def _next(step: Callable[..., Any], ids: Tensor, cache: Any, at: int) -> Tensor:
        places = torch.arange(at, at + ids.shape[1], device=ids.device)[None]
        output = step(
            ids, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        token: Tensor = output.logits[:, -1:].argmax(-1).clone()
        return token


def prompts(model: PreTrainedModel, batch: int, length: int) -> Tensor:
    """Tokens spread over the vocabulary, the same for every model."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (batch, length), generator=draw)
    return ids.to(model.device)


def now(model: PreTrainedModel) -> float:
    """The clock, once the device has nothing left to do."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def weight_bytes(model: PreTrainedModel) -> dict[str, int]:
    """Bytes of the weights by part; a parameter that two parts share counts for the first."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    parts = {"embeddings": embeddings, "head": head, "decoder": model}
    counted: set[int] = set()
    found = {}
    for name, part in parts.items():
        own = [p for p in part.parameters() if id(p) not in counted] if part is not None else []
        counted |= {id(p) for p in own}
        found[name] = sum(p.numel() * p.element_size() for p in own)
    return found


def macs_per_token(model: PreTrainedModel) -> int:
    """Multiply-accumulates of every linear layer for one token, the head included."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return sum(layer.weight.numel() for layer in layers)


@torch.inference_mode()
def kv_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes that the cache grows by with a token, counted from a cache."""
    sizes = []
    for length in (2, 4):
        cache: Any = DynamicCache(config=model.config)
        model(prompts(model, 1, length), past_key_values=cache, use_cache=True)
        tensors = [t for layer in cache.layers for t in (layer.keys, layer.values)]
        sizes.append(sum(int(t.numel() * t.element_size()) for t in tensors))
    return (sizes[1] - sizes[0]) // 2


def decoding_memory(model: PreTrainedModel, asked: EfficiencyConfig) -> int:
    """Peak bytes beyond what was held before, while the largest batch is decoded."""
    work = Decoder(max(asked.batches), asked.prompt, asked.tokens, False)
    if model.device.type == "cuda":
        before = torch.cuda.memory_allocated(model.device)
        torch.cuda.reset_peak_memory_stats(model.device)
        work(model)
        return torch.cuda.max_memory_allocated(model.device) - before
    if PEAK_RESET.exists():
        PEAK_RESET.write_text("5")
    before = host_peak()
    work(model)
    return host_peak() - before
