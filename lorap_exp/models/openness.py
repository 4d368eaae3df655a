"""What a saved model opens in, said in one line; and which sizes quantisers cannot take."""

from collections import Counter
from typing import Any

from transformers import PreTrainedConfig

from lorap_exp.models.families import blocks_of, meta_model
from lorap_exp.models.modeling_compressed import Projection
from lorap_exp.models.quantised import stored_bits
from lorap_exp.models.stock import stock_base, stock_settings, without_factors

GROUP = 32
"""Values that GGUF's types and the usual int4 groups quantise together."""


def openness(config: PreTrainedConfig) -> str:
    """One line: a stock architecture, or what needs trust_remote_code, and what would change it."""
    stock = getattr(config, "stock_class", None) is None
    name = (config.architectures or [type(config).__name__])[0]
    if (bits := stored_bits(config)) is not None:
        what = f"stock {name}" if stock else "needs trust_remote_code"
        return (
            f"{what}, its matrices integers of {bits} bits: opens in transformers where "
            f"compressed-tensors is installed"
        )
    if stock:
        return (
            f"stock {name}: opens wherever the original architecture does "
            f"(transformers, vLLM, llama.cpp, TensorRT-LLM)"
        )
    reason = stock_settings(config)
    if not isinstance(reason, str):
        return "needs trust_remote_code; `export FOLDER --to stock` makes it a stock architecture"
    return f"needs trust_remote_code: {reason}; {_what_would_help(config)}"


def _what_would_help(config: PreTrainedConfig) -> str:
    dense = stock_settings(without_factors(config))
    if not isinstance(dense, str):
        return "`export FOLDER --to dense` multiplies factors out and makes it stock"
    return f"no form of it is stock: {dense}"


def awkward_sizes(config: PreTrainedConfig) -> Counter[int]:
    """Row lengths that are no multiple of 32 and not the original's -> matrices of that length.

    GGUF keeps such a matrix in 16 bit, and int4 quantisers refuse it.
    """
    base = stock_base(config)
    usual = set() if base is config else set(row_lengths(base))
    return Counter(n for n in row_lengths(config) if n % GROUP and n not in usual)


def row_lengths(config: PreTrainedConfig) -> list[int]:
    """Input features of every linear layer of the decoder; those of factors one by one."""
    found = []
    for block in blocks_of(meta_model(config)):
        for name in block.family.matrices:
            linear: Any = block.linear(name)
            parts = linear.parts() if isinstance(linear, Projection) else [linear]
            found += [part.in_features for part in parts]
    return found


def size_advice(config: PreTrainedConfig) -> str | None:
    """What to say of sizes that quantisers cannot take; None when they all are multiples of 32."""
    found = awkward_sizes(config)
    if not found:
        return None
    lengths = ", ".join(map(str, sorted(found)))
    return (
        f"{sum(found.values())} matrices have rows of {lengths} values, no multiple of {GROUP}: "
        f"GGUF leaves them in 16 bit and int4 quantisers refuse them; round_to=32 in the stages "
        f"of the method avoids it"
    )
