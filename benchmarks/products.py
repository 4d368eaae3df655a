"""Gram matrices of bfloat16 activations: time and error beside a float32 product.

`python -m benchmarks.products [--tokens N] [--features N]` prints medians of interleaved repeats.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lorap_exp.ops.products import gram

REPEATS = 9


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--features", type=int, default=1536)
    asked = parser.parse_args()
    torch.manual_seed(0)
    x = torch.randn(asked.tokens, asked.features).bfloat16()
    true = x.double().mT @ x.double()
    forms: dict[str, Callable[[], Tensor]] = {
        "float32": lambda: x.float().mT @ x.float(),
        "as they are": lambda: gram(x),
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(REPEATS):
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            seconds[name].append(time.perf_counter() - start)
    base = statistics.median(seconds["float32"])
    print("| product | seconds / float32 | largest error |\n| --- | --- | --- |")
    for name, form in forms.items():
        error = float((form().double() - true).abs().max())
        print(f"| {name} | {statistics.median(seconds[name]) / base:.2f} | {error:.1e} |")


if __name__ == "__main__":
    main()
