"""Which layers of a dense model are redundant: LLM-Streamline's score and its relatives.

Layers are numbered 0..L-1; h[i] is the input of layer i and h[L] the raw output of the last one,
before the final norm. Sources: LLM-Streamline (arXiv 2403.19135, section 3.1), ShortGPT
(2403.03853), UIDL (2403.17887), Shortened LLaMA (2402.02834), SLEB (2402.09025).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorap_exp.calibration.gradients import salience
from lorap_exp.calibration.stream import entered
from lorap_exp.errors import LorapError
from lorap_exp.evaluation.perplexity import mean_nll
from lorap_exp.models.families import Block, blocks_of
from lorap_exp.models.source import Source
from lorap_exp.ops.similarity import angular_distance, cosines, unit_rows

Criterion = Literal[
    "cosine", "block_influence", "angular", "deepest", "perplexity", "taylor", "sleb", "fixed"
]
CONTIGUOUS = ("cosine", "angular", "deepest", "fixed")
"""Criteria whose choice is one span; a replacement needs one."""
PUBLISHED_PROTECTION = {"perplexity": (4, 2), "taylor": (4, 2), "sleb": (1, 1), "deepest": (0, 1)}
"""First and last layers that stay, where the source says so."""
TOKENS = 2048
"""Tokens of hidden states held at a time."""
Progress = Callable[[Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Selection:
    """The layers to remove and why.

    Attributes:
        scores: (start of the span, or layer) and its score: a mean cosine for cosine, deepest and
            fixed, an angle, an influence, Taylor+, or mean nats per token (perplexity, sleb).
        map: (start, length, mean cosine of h[start] and h[start + length]).
    """

    criterion: str
    removed: tuple[int, ...]
    scores: tuple[tuple[int, float], ...]
    map: tuple[tuple[int, int, float], ...]

    @staticmethod
    def restore(**raw: Any) -> "Selection":
        lists = {key: tuple(map(tuple, raw[key])) for key in ("scores", "map")}
        return Selection(**raw | lists | {"removed": tuple(raw["removed"])})


@dataclass(frozen=True)
class LayerScores:
    """The measurement of which `length` layers go: a model probe (`calibration.probes`)."""

    criterion: Criterion
    length: int
    protect: tuple[int, int]
    start: int | None
    name: ClassVar[str] = "selections"

    def measure(
        self, source: Source, ids: Tensor, batch_size: int, progress: Progress
    ) -> dict[str, Any]:
        """The selection as plain values."""
        found = select(
            source,
            ids,
            self.length,
            criterion=self.criterion,
            protect=self.protect,
            start=self.start,
            batch_size=batch_size,
            progress=progress,
        )
        return asdict(found)


@dataclass(frozen=True)
class Similarities:
    """For every pair i < j of h: mean cosine over all tokens, mean angle at the last token."""

    cosine: Mapping[tuple[int, int], float]
    last_angle: Mapping[tuple[int, int], float]


@torch.no_grad()
def measure_similarities(
    model: PreTrainedModel, ids: Tensor, progress: Progress = iter
) -> Similarities:
    """Similarities of all hidden states of a dense model, streamed row by row in float32."""
    blocks = blocks_of(model)
    pairs = [(i, j) for j in range(len(blocks) + 1) for i in range(j)]
    sums = {pair: torch.zeros((), dtype=torch.float64) for pair in pairs}
    angles = {pair: torch.zeros((), dtype=torch.float64) for pair in pairs}
    for rows in progress(ids.split(max(1, TOKENS // ids.shape[1]))):
        units = [unit_rows(h) for h in hidden_states(model, blocks, rows.to(model.device))]
        for i, j in pairs:
            found = cosines(units[i], units[j])
            sums[i, j] += found.double().sum().cpu()
            angles[i, j] += angular_distance(found[:, -1]).double().sum().cpu()
    return Similarities(
        {pair: float(value / ids.numel()) for pair, value in sums.items()},
        {pair: float(value / len(ids)) for pair, value in angles.items()},
    )


def hidden_states(model: PreTrainedModel, blocks: Sequence[Block], ids: Tensor) -> list[Tensor]:
    """h[0], ..., h[L] of one batch (B, T, H), the last one raw."""
    states: list[Tensor] = []
    hooks = [
        block.module.register_forward_pre_hook(lambda _, args: states.append(args[0]))
        for block in blocks
    ]

    def last(_: nn.Module, args: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    hooks.append(blocks[-1].module.register_forward_hook(last))
    try:
        model.get_decoder()(ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return states


def nll_without(model: PreTrainedModel, ids: Tensor, batch_size: int, gone: Sequence[int]) -> float:
    """Mean negative log-likelihood of the tokens with some layers bypassed."""
    blocks = blocks_of(model)
    with entered([blocks[index] for index in gone], None):
        return mean_nll(model, ids, batch_size)


def select(
    source: Source,
    ids: Tensor,
    length: int,
    *,
    criterion: Criterion,
    protect: tuple[int, int],
    start: int | None,
    batch_size: int,
    progress: Progress = iter,
) -> Selection:
    """Choose `length` layers of a dense model.

    Args:
        source: the dense model.
        ids: calibration tokens (samples, T).
        length: number of layers.
        criterion: the score.
        protect: first and last layers that stay.
        start: first layer of the span when the criterion is fixed.
        batch_size: sequences at a time for criteria that need losses.
        progress: wraps the batches of the similarity pass.
    """
    model, total = source.model, len(source.blocks)
    similar = measure_similarities(model, ids, progress)
    starts = range(protect[0], total - protect[1] - length + 1)
    layers = range(protect[0], total - protect[1])
    scores: dict[int, float]
    match criterion:
        case "cosine":
            scores = {s: similar.cosine[s, s + length] for s in starts}
            first = max(scores, key=lambda s: scores[s])
        case "angular":
            scores = {s: similar.last_angle[s, s + length] for s in starts}
            first = min(scores, key=lambda s: scores[s])
        case "deepest" | "fixed":
            first = starts[-1] if start is None else start
            scores = {first: similar.cosine[first, first + length]}
        case "block_influence":
            scores = {i: 1 - similar.cosine[i, i + 1] for i in layers}
        case "perplexity":
            scores = {i: nll_without(model, ids, batch_size, [i]) for i in layers}
        case "taylor":
            importance = salience(source, ids, batch_size)
            scores = {i: importance[i] for i in layers}
        case "sleb":
            scores = greedy(model, ids, batch_size, layers, length)
    check_finite(criterion, scores)
    if criterion in CONTIGUOUS:
        removed = tuple(range(first, first + length))
    elif criterion == "sleb":
        removed = tuple(sorted(scores))
    else:
        removed = tuple(sorted(sorted(scores, key=lambda i: scores[i])[:length]))
    table = tuple((i, j - i, value) for (i, j), value in sorted(similar.cosine.items()))
    return Selection(criterion, removed, tuple(sorted(scores.items())), table)


def check_finite(criterion: str, scores: Mapping[int, float]) -> None:
    """Raise unless every score can be compared."""
    wrong = [layer for layer, score in scores.items() if not math.isfinite(score)]
    if wrong:
        raise LorapError(
            f"method.stages.layers.criterion: the {criterion} scores of layers "
            f"{', '.join(map(str, wrong))} are not finite; dtype must have the range that the "
            f"model needs (bfloat16, float32)"
        )


def greedy(
    model: PreTrainedModel, ids: Tensor, batch_size: int, layers: Sequence[int], length: int
) -> dict[int, float]:
    """SLEB: remove the layer that costs least, score the others anew, `length` times.

    Returns:
        The loss after each removal, by removed layer.
    """
    gone: dict[int, float] = {}
    for _ in range(length):
        costs = {
            layer: nll_without(model, ids, batch_size, [*gone, layer])
            for layer in layers
            if layer not in gone
        }
        chosen = min(costs, key=lambda layer: costs[layer])
        gone[chosen] = costs[chosen]
    return gone
