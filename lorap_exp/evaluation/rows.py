"""Many token sequences in one row: what they share at their beginning stands there once.

The sequences of a row form trees. A tree is laid out depth first, so the descendants of a token
are the tokens behind it up to its `end`: token i sees token j if and only if j <= i < end[j]. One
number for each token is the whole block mask, whether choices share a context, contexts share a
few-shot prompt, or two sequences are the same. A token's position is its depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

ROW = 256
"""Tokens of a row: masked attention costs their square, the rest of a model each of them."""


@dataclass(frozen=True)
class Scored:
    """A sequence whose last tokens are scored: their predictors are `tokens[-len(targets):]`."""

    index: int
    tokens: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass
class Row:
    """A row under construction, and the places in it that predict the targets of each sequence."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    predictors: list[tuple[Scored, list[int]]] = field(default_factory=list)

    def add(self, tree: Sequence[Scored]) -> None:
        """Append a tree; its sequences are sorted, so those that share a beginning are neighbours.

        `path` is where the tokens of the last sequence stand; what the next one does not share
        with it has no further descendants.
        """
        path: list[int] = []
        before: tuple[int, ...] = ()
        for sequence in tree:
            same = shared(before, sequence.tokens)
            self._close(path[same:])
            path = path[:same]
            for depth in range(same, len(sequence.tokens)):
                path.append(len(self.tokens))
                self.tokens.append(sequence.tokens[depth])
                self.positions.append(depth)
                self.ends.append(0)
            self.predictors.append((sequence, path[len(path) - len(sequence.targets) :]))
            before = sequence.tokens
        self._close(path)

    def _close(self, places: Sequence[int]) -> None:
        for place in places:
            self.ends[place] = len(self.tokens)


@dataclass(frozen=True)
class Batch:
    """Rows as tensors (B, T): tokens, positions and ends; and N scored tokens.

    `places` (N,) is where each `target` is predicted, counted through the rows, `owners` the
    index of the sequence that it belongs to.
    """

    ids: Tensor
    positions: Tensor
    ends: Tensor
    places: Tensor
    targets: Tensor
    owners: Tensor

    @property
    def is_chain(self) -> bool:
        """One sequence in one row: plain causal attention, no mask is needed."""
        return len(self.ids) == 1 and bool((self.ends == self.ids.shape[1]).all())

    def mask(self, window: int | None) -> Tensor:
        """Which tokens see which, (B, 1, T, T); with a window, only those less than it away."""
        place = torch.arange(self.ids.shape[1], device=self.ids.device)
        earlier = place[:, None] >= place[None, :]
        seen = earlier & (place[None, :, None] < self.ends[:, None, :])
        if window is not None:
            seen &= self.positions[:, :, None] - self.positions[:, None, :] < window
        return seen[:, None]

    def to(self, device: torch.device) -> "Batch":
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that two sequences have in common at their beginning."""
    at = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        at += 1
    return at


def trees(sequences: Sequence[Scored], row: int = ROW) -> list[list[Scored]]:
    """Sequences that share at least half of their tokens, together, sorted.

    A tree that has grown beyond a row, and beyond twice its first sequence, is closed, so that
    questions under one long prompt share it without making attention over the row expensive.
    """
    found: list[list[Scored]] = []
    size = limit = 0
    for sequence in sorted(sequences, key=lambda s: s.tokens):
        if found:
            same = shared(found[-1][-1].tokens, sequence.tokens)
            new = len(sequence.tokens) - same
            if 2 * same >= len(sequence.tokens) and size + new <= limit:
                found[-1].append(sequence)
                size += new
                continue
        found.append([sequence])
        size = len(sequence.tokens)
        limit = max(row, 2 * size)
    return found


def fill_rows(sequences: Sequence[Scored], row: int = ROW) -> list[Row]:
    """Rows of at most `row` tokens, or one tree where that is longer; the longest first.

    First fit, the largest tree first: 95 to 99 % of the places of such rows are used.
    """
    built: list[Row] = []
    for tree in trees(sequences, row):
        built.append(Row())
        built[-1].add(tree)
    built.sort(key=lambda one: -len(one.tokens))
    rows: list[list[Row]] = []
    space: list[int] = []
    first = 0
    for one in built:
        at = next((i for i in range(first, len(rows)) if space[i] >= len(one.tokens)), len(rows))
        if at == len(rows):
            rows.append([])
            space.append(max(row, len(one.tokens)))
        rows[at].append(one)
        space[at] -= len(one.tokens)
        while first < len(rows) and space[first] < 4:
            first += 1
    return sorted(map(_join, rows), key=lambda row: -len(row.tokens))


def _join(parts: Sequence[Row]) -> Row:
    row = Row()
    for part in parts:
        at = len(row.tokens)
        row.tokens += part.tokens
        row.positions += part.positions
        row.ends += [end + at for end in part.ends]
        row.predictors += [(s, [place + at for place in places]) for s, places in part.predictors]
    return row


def batch_rows(rows: Sequence[Row], tokens: int) -> list[list[Row]]:
    """Rows in batches of at most `tokens` places; a row that is longer stands alone."""
    batches: list[list[Row]] = []
    for row in rows:
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0].tokens) <= tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def stack(rows: Sequence[Row]) -> Batch:
    """Rows as one batch; a place beyond the end of a row sees nothing but itself."""
    length = max(len(row.tokens) for row in rows)
    spare = [length - len(row.tokens) for row in rows]
    places: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for at, row in enumerate(rows):
        for sequence, inside in row.predictors:
            places += [at * length + place for place in inside]
            targets += sequence.targets
            owners += [sequence.index] * len(inside)
    filled = list(zip(rows, spare, strict=True))
    return Batch(
        ids=torch.tensor([row.tokens + [0] * rest for row, rest in filled]),
        positions=torch.tensor([row.positions + [0] * rest for row, rest in filled]),
        ends=torch.tensor(
            [[*row.ends, *range(length - rest + 1, length + 1)] for row, rest in filled]
        ),
        places=torch.tensor(places),
        targets=torch.tensor(targets),
        owners=torch.tensor(owners),
    )
