"""Up to which rank two thin products are faster than one matrix, beside where they are smaller.

`python -m benchmarks.forms` times both forms in turns for the shapes of SmolLM2-135M and of a Llama
of 1.1B parameters, at 1, 8 and 512 tokens, in bfloat16 and float32. Every call has other weights,
as in a model, so that they come from memory.
"""

import time
from collections.abc import Callable, Sequence
from itertools import cycle

import torch
from torch import Tensor
from torch.nn.functional import linear

SHAPES = {
    "SmolLM2-135M": {"q, o": (576, 576), "k, v": (192, 576), "gate, up": (1536, 576)},
    "Llama-1.1B": {"q, o": (2048, 2048), "k, v": (256, 2048), "gate, up": (5632, 2048)},
}
"""Output and input features."""
TOKENS = (1, 8, 512)
SHARES = (0.25, 0.5, 0.75, 1.0, 1.25)
"""Ranks that are timed, as shares of the one at which both forms have the same parameters."""
REPEATS, MULTIPLE, WORKING_SET, SECONDS = 7, 32, 2**26, 0.02
Form = Callable[[Tensor], Tensor]


def even_rank(outs: int, ins: int) -> float:
    """The rank at which two factors have as many parameters as the matrix."""
    return outs * ins / (outs + ins)


def ranks_of(outs: int, ins: int) -> list[int]:
    """Multiples of 32 near the shares, ascending."""
    even = even_rank(outs, ins)
    return sorted({max(1, round(share * even / MULTIPLE)) * MULTIPLE for share in SHARES})


def form(outs: int, ins: int, rank: int | None, dtype: torch.dtype) -> Form:
    """A linear map as one matrix, or as two of a rank, with other weights at every call."""
    sizes = [(outs, ins)] if rank is None else [(rank, ins), (outs, rank)]
    held = sum(a * b for a, b in sizes) * dtype.itemsize
    copies = max(2, min(64, WORKING_SET // held))
    weights = cycle([[torch.randn(size).to(dtype) for size in sizes] for _ in range(copies)])

    def call(x: Tensor) -> Tensor:
        for weight in next(weights):
            x = linear(x, weight)
        return x

    return call


@torch.inference_mode()
def times(forms: Sequence[Form], x: Tensor) -> list[float]:
    """Seconds of a call of each, the fastest of some turns: other processes only add to them."""
    found: list[list[float]] = [[] for _ in forms]
    calls = []
    for one in forms:
        one(x)
        start = time.perf_counter()
        one(x)
        calls.append(max(1, min(50, int(SECONDS / (time.perf_counter() - start)))))
    for _ in range(REPEATS):
        for own, one, count in zip(found, forms, calls, strict=True):
            start = time.perf_counter()
            for _ in range(count):
                one(x)
            own.append((time.perf_counter() - start) / count)
    return [min(own) for own in found]


def crossing(ranks: Sequence[int], ratios: Sequence[float]) -> str:
    """The rank at which the ratio (dense over factored) falls to 1, between those that were timed.

    Time need not grow evenly: it is the first rank from which on no timed one is faster.
    """
    faster = [number for number, ratio in enumerate(ratios) if ratio > 1]
    if not faster:
        return f"below {ranks[0]}"
    last = faster[-1]
    if last == len(ranks) - 1:
        return f"above {ranks[-1]}"
    drop = (ratios[last] - 1) / (ratios[last] - ratios[last + 1])
    return f"{ranks[last] + drop * (ranks[last + 1] - ranks[last]):.0f}"


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads; dense over factored seconds in the last column\n")
    print("| model | matrix | type | tokens | even in parameters | even in time | at ranks |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for model, shapes in SHAPES.items():
        for name, (outs, ins) in shapes.items():
            ranks = ranks_of(outs, ins)
            for dtype in (torch.bfloat16, torch.float32):
                forms = [form(outs, ins, rank, dtype) for rank in (None, *ranks)]
                for tokens in TOKENS:
                    dense, *factored = times(forms, torch.randn(tokens, ins).to(dtype))
                    ratios = [dense / own for own in factored]
                    shown = ", ".join(f"{r}: {x:.2f}" for r, x in zip(ranks, ratios, strict=True))
                    kind = str(dtype).removeprefix("torch.")
                    print(
                        f"| {model} | {name} {outs} x {ins} | {kind} | {tokens} "
                        f"| {even_rank(outs, ins):.0f} | {crossing(ranks, ratios)} | {shown} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
