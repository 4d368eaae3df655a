"""What each stage of a job needs, what this machine can do, and the fraction reached.

`python -m benchmarks.roofline` measures the machine (matrix products in bfloat16 and float32, a
read of memory), five stages on SmolLM2-135M, and the exponents of calibration and factorisation
over layers, hidden size and samples on random models. Times on 7B and 70B are extrapolated from
FLOPs, bytes and the fractions reached here; the table marks them so.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.cost import configuration, sample
from lorap_exp.evaluation.efficiency import Decoder, macs_per_token, weight_bytes
from lorap_exp.evaluation.perplexity import mean_nll
from lorap_exp.models.loading import load_config, load_model

REPEATS = 3
GPU = ("H100 SXM, data sheet", 989e12, 67e12, 3.35e12)
"""Name, FLOP/s in bfloat16, in float32, bytes/s: what the extrapolation assumes."""
SIZES = {"7B": (32, 4096, 11008, 32000), "70B": (80, 8192, 28672, 32000)}
"""Layers, hidden size, MLP width and vocabulary of LLaMA-2 (70B counted with full heads)."""


@dataclass(frozen=True)
class Stage:
    """FLOPs and bytes of a stage, its seconds here, and the FLOP/s it could have."""

    name: str
    flops: float
    bytes: float
    seconds: float
    peak: float

    def fraction(self, bandwidth: float) -> float:
        """Of the speed that arithmetic and memory allow."""
        return max(self.flops / self.peak, self.bytes / bandwidth) / self.seconds


def seconds(work: Callable[[], object]) -> float:
    """Median seconds of a few calls, after one that is not counted."""
    work()
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return median(found)


def peak_flops(dtype: torch.dtype, size: int = 2048) -> float:
    """FLOP/s of a square matrix product."""
    one, other = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return 2 * size**3 / seconds(lambda: one @ other)


def peak_bandwidth(size: int = 2**28) -> float:
    """Bytes/s of reading memory that is in no cache."""
    numbers = torch.ones(size // 4)
    return size / seconds(numbers.sum)


@torch.inference_mode()
def hidden_pass(model: PreTrainedModel, ids: Tensor) -> None:
    """A forward pass without the head, as calibration makes it."""
    for batch in ids.split(16):
        model.get_decoder()(batch, use_cache=False)


def factorise(weights: Sequence[Tensor]) -> None:
    """The eigendecompositions of the outputs' Gram matrices, as `project_outputs` takes them."""
    for weight in weights:
        torch.linalg.eigh(weight @ weight.T)


def stages(model: PreTrainedModel, ids: Tensor, fast: float, exact: float) -> list[Stage]:
    """The stages of a job on `ids` (B, T), and decoding at batch 1."""
    head = model.get_output_embeddings().weight.numel()
    macs, tokens = macs_per_token(model), ids.numel()
    held = sum(weight_bytes(model).values())
    scores = 2 * model.config.num_hidden_layers * model.config.hidden_size * ids.shape[1]
    body = 2.0 * tokens * (macs - head + scores / 2)
    matrices = [p.float() for n, p in model.named_parameters() if n.endswith("o_proj.weight")]
    eigen = sum(2.0 * w.shape[0] ** 2 * w.shape[1] + 9.0 * w.shape[0] ** 3 for w in matrices)
    decoder, steps = Decoder(1, 32, 33, False), 32
    rate = 1 / median(1 / decoder(model) for _ in range(REPEATS))
    calibration = seconds(partial(hidden_pass, model, ids))
    scoring = seconds(partial(mean_nll, model, ids, 16))
    factored = seconds(partial(factorise, matrices))
    return [
        Stage("calibration: one pass", body, held, calibration, fast),
        Stage("factorisation of every o, float32", eigen, 0, factored, exact),
        Stage("perplexity", body + 2.0 * tokens * head, held, scoring, fast),
        Stage("decode, batch 1", 2.0 * macs * steps, held * steps, steps / rate, fast),
    ]


def random_model(layers: int, hidden: int) -> PreTrainedModel:
    """A Llama without a large vocabulary."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 32 * 32,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def exponent(sizes: Sequence[int], times: Sequence[float]) -> float:
    """Slope of log time against log size, by least squares."""
    x, y = [math.log(s) for s in sizes], [math.log(t) for t in times]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def exponents(ids: Tensor) -> list[tuple[str, str, float]]:
    """How a calibration pass grows with layers, hidden size and samples."""
    ids = ids % 256  # the vocabulary of the random models
    few = ids[:16]
    layers, widths, samples = (4, 8, 16, 32), (256, 512, 1024, 2048), (16, 32, 64, 128)
    over_layers = [seconds(partial(hidden_pass, random_model(n, 256), few)) for n in layers]
    over_hidden = [seconds(partial(hidden_pass, random_model(2, h), few)) for h in widths]
    small = random_model(4, 256)
    over_samples = [seconds(partial(hidden_pass, small, ids[:n])) for n in samples]
    return [
        ("layers", f"{layers[0]}..{layers[-1]}", exponent(layers, over_layers)),
        ("hidden size", f"{widths[0]}..{widths[-1]}", exponent(widths, over_hidden)),
        ("samples", f"{samples[0]}..{samples[-1]}", exponent(samples, over_samples)),
    ]


def extrapolated(fractions: dict[str, float]) -> list[str]:
    """Rows of the table for one GPU: nothing in them was measured."""
    name, fast, exact, bandwidth = GPU
    rows = []
    for size, (layers, hidden, inner, vocabulary) in SIZES.items():
        body = layers * (4 * hidden**2 + 3 * hidden * inner)
        macs = body + vocabulary * hidden
        tokens = 128 * 128
        needed = {
            "calibration: one pass": max(2 * body * tokens / fast, 2 * body / bandwidth),
            "factorisation of every o, float32": layers * 11 * hidden**3 / exact,
            "perplexity": 2 * macs * 327_680 / fast,
            "decode, batch 1": 2 * macs / bandwidth,
        }
        for stage, least in needed.items():
            unit = "s a token" if stage.startswith("decode") else "s"
            value = least / fractions[stage]
            rows.append(f"| {size} | {stage} | {value:.3g} {unit} | extrapolated, {name} |")
    return rows


def main() -> None:
    """Print the page's tables."""
    cfg = configuration()
    model = load_model(
        cfg.model, load_config(cfg.model), torch.device("cpu"), torch.bfloat16, seed=0
    )
    ids = sample(cfg.model)
    fast, exact, bandwidth = (
        peak_flops(torch.bfloat16),
        peak_flops(torch.float32),
        peak_bandwidth(),
    )
    print(
        f"{torch.get_num_threads()} threads: {fast / 1e9:.0f} GFLOP/s in bfloat16, "
        f"{exact / 1e9:.0f} in float32, {bandwidth / 1e9:.1f} GB/s read\n"
    )
    print("| stage | GFLOP | GB | seconds | fraction of the limit |")
    print("| --- | --- | --- | --- | --- |")
    fractions = {}
    for stage in stages(model, ids, fast, exact):
        fractions[stage.name] = stage.fraction(bandwidth)
        print(
            f"| {stage.name} | {stage.flops / 1e9:.1f} | {stage.bytes / 1e9:.2f} "
            f"| {stage.seconds:.2f} | {fractions[stage.name]:.2f} |",
            flush=True,
        )
    print("\n| calibration over | range | exponent |\n| --- | --- | --- |")
    for what, span, slope in exponents(ids):
        print(f"| {what} | {span} | {slope:.2f} |", flush=True)
    print("\n| model | stage | time | how it is known |\n| --- | --- | --- | --- |")
    print("\n".join(extrapolated(fractions)))


if __name__ == "__main__":
    main()
