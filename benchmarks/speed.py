"""How fast a model of half the size is beside the dense one, and how fast it could be at most.

`python -m benchmarks.speed [--model NAME] [--repeats N]` builds SmolLM2-135M and a Llama of 1.1B
parameters with random weights, of which speed does not depend, and their compressed forms at ratio
0.5 with sizes that are multiples of 64. Models take turns in one process. Weights are the same
kind of noise everywhere, nothing is calibrated.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from benchmarks.cost import configuration
from benchmarks.roofline import peak_bandwidth, peak_flops
from benchmarks.streaming import llama
from lorap_exp.evaluation.efficiency import (
    Decoder,
    Speed,
    Work,
    compare,
    macs_per_token,
    prefill,
    weight_bytes,
)
from lorap_exp.methods.planner import plan_stack
from lorap_exp.methods.stack import build_stack
from lorap_exp.models.forms import compressed_config
from lorap_exp.models.layout import dense_shape, settings_of
from lorap_exp.models.loading import load_config
from lorap_exp.planning.shapes import Shape
from lorap_exp.planning.stack import Budget

RATIO, MULTIPLE, LENGTH, PROMPT, TOKENS = 0.5, 64, 512, 8, 9
BATCHES = (1, 8, 32)
HEADINGS = ("model", "method (decoder kept)", "what", "before, tokens/s", "now", "times")
HEADINGS += ("products in proportion", "limit")
METHODS: Mapping[str, tuple[str, ...]] = {
    "lorap": (
        "method=lorap",
        "method.stages.attention.allocation=uniform",
        f"method.stages.attention.round_to={MULTIPLE}",
        f"method.stages.mlp.round_to={MULTIPLE}",
    ),
    "lorap_plus": ("method=lorap_plus", f"method.stages.all.round_to={MULTIPLE}"),
    "pruned": ("method=pruned", f"method.stages.mlp.round_to={MULTIPLE}"),
}
"""Published ranks of k are below 64 at this ratio: `allocation=uniform` can be rounded to it."""


def smollm2() -> PreTrainedConfig:
    """30 layers, hidden 576, MLP 1536, 9 / 3 heads; the head is the embedding."""
    return load_config(configuration().model)


MODELS: Mapping[str, Callable[[], PreTrainedConfig]] = {
    "SmolLM2-135M": smollm2,
    "Llama-1.1B": llama,
}


@torch.no_grad()
def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The architecture with noise for weights, in bfloat16."""
    with no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    noise = torch.randn(2**16, generator=torch.Generator().manual_seed(0)).mul(0.02).bfloat16()
    for parameter in model.parameters():
        for piece in parameter.view(-1).split(len(noise)):
            piece.copy_(noise[: len(piece)])
    return model.eval().requires_grad_(False)


def compressed(method: str, config: PreTrainedConfig, dense: Shape) -> tuple[Any, float]:
    """The configuration of a compressed model, and the share of the decoder that it keeps.

    lorap_plus chooses its sizes by measurements; here it has those of its plan before them.
    """
    stack = build_stack(configuration(*METHODS[method]).method)
    plan = plan_stack(stack, dense, Budget(RATIO))
    kept = plan.shape(dense).parameters / dense.parameters
    return compressed_config(config, settings_of(plan, config)), kept


@dataclass(frozen=True)
class Machine:
    """FLOP/s in bfloat16 and bytes/s, as `benchmarks.roofline` measures them."""

    flops: float
    bandwidth: float

    def least(self, flops: float, moved: float) -> float:
        """Seconds below which no work with these FLOPs and bytes can be done."""
        return max(flops / self.flops, moved / self.bandwidth)


def head_weights(model: PreTrainedModel) -> int:
    """Numbers of the output head, whether or not they are the embedding's too."""
    return int(model.get_output_embeddings().weight.numel())


def bytes_read(model: PreTrainedModel) -> int:
    """Of the weights, for one step of decoding: all but an embedding that is not the head too."""
    parts = weight_bytes(model)
    return parts["decoder"] + (parts["head"] or parts["embeddings"])


def needed(model: PreTrainedModel, batch: int | None) -> tuple[float, float]:
    """FLOPs and bytes of one step of decoding a batch; of the prompt where there is none."""
    macs, head = macs_per_token(model), head_weights(model)
    if batch is not None:
        return 2.0 * macs * batch, bytes_read(model)
    config = model.config
    scores = 2 * config.num_hidden_layers * config.hidden_size * LENGTH
    return LENGTH * (2.0 * (macs - head) + scores) + 2.0 * head, bytes_read(model)


def works() -> list[tuple[str, int | None, Work]]:
    """What is timed: name, batch that is decoded, and the work."""
    found: list[tuple[str, int | None, Work]] = [
        (f"prefill, {LENGTH} tokens", None, lambda model: prefill(model, 1, LENGTH))
    ]
    for batch in BATCHES:
        found.append((f"decode x{batch}", batch, Decoder(batch, PROMPT, TOKENS, False)))
    return found


def limit(machine: Machine, model: PreTrainedModel, dense: PreTrainedModel, batch: Any) -> float:
    """How many times as fast the model could be at most, were both at the machine's limits."""
    return machine.least(*needed(dense, batch)) / machine.least(*needed(model, batch))


def products_share(dense: PreTrainedModel, work: Work) -> float:
    """Share of the seconds of a work that the products of the dense decoder's layers take."""
    head = dense.get_output_embeddings()
    layers = [m for m in dense.modules() if isinstance(m, nn.Linear) and m is not head]
    begun = spent = 0.0

    def before(*_: Any) -> None:
        nonlocal begun
        begun = time.perf_counter()

    def after(*_: Any) -> None:
        nonlocal spent
        spent += time.perf_counter() - begun

    hooks = [layer.register_forward_pre_hook(before) for layer in layers]
    hooks += [layer.register_forward_hook(after) for layer in layers]
    start = time.perf_counter()
    work(dense)
    whole = time.perf_counter() - start
    for hook in hooks:
        hook.remove()
    return spent / whole


def row(*cells: str) -> None:
    """A line of a table, at once."""
    print("| " + " | ".join(cells) + " |", flush=True)


def spread(speed: Speed) -> str:
    """The ratio and its quartiles."""
    return f"{speed.ratio:.2f} ({speed.low:.2f} to {speed.high:.2f})"


def compare_forms(name: str, machine: Machine, repeats: int) -> None:
    """The rows of one model."""
    config = MODELS[name]()
    dense, shape = random_model(config), dense_shape(config)
    read, head = bytes_read(dense), head_weights(dense) * 2
    told = []
    shares = {what: products_share(dense, work) for what, _, work in works()}
    for method in METHODS:
        small, kept = compressed(method, config, shape)
        model = random_model(small)
        for what, batch, work in works():
            speed = compare(what, work, model, dense, repeats)
            most = limit(machine, model, dense, batch)
            rates = (f"{speed.dense:.1f}", f"{speed.value:.1f}")
            alone = f"{1 / (1 - shares[what] * (1 - kept)):.2f}"
            cells = (*rates, spread(speed), alone, f"{most:.2f}")
            row(name, f"{method} ({kept:.2f})", what, *cells)
        told.append(
            f"{name}, {method}: a decoded token reads {bytes_read(model) / 1e6:.0f} MB in place of "
            f"{read / 1e6:.0f} MB; {head / 1e6:.0f} MB of both are the head"
        )
        del model
    print("\n" + "\n".join(told) + "\n")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(MODELS), action="append")
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    if asked.repeats < 2:
        parser.error(f"--repeats must be at least 2, for a spread, got {asked.repeats}")
    machine = Machine(peak_flops(torch.bfloat16), peak_bandwidth())
    print(
        f"bfloat16, {torch.get_num_threads()} threads: {machine.flops / 1e9:.0f} GFLOP/s, "
        f"{machine.bandwidth / 1e9:.1f} GB/s read\n"
    )
    for name in asked.model or MODELS:
        row(*HEADINGS)
        row(*["---"] * len(HEADINGS))
        compare_forms(name, machine, asked.repeats)


if __name__ == "__main__":
    main()
