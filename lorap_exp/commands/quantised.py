"""Saved models in the forms of quantisers: llama.cpp's GGUF files, and torchao's int8."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, TorchAoConfig

from lorap_exp.data.embedded import part
from lorap_exp.data.source import Text
from lorap_exp.errors import LorapError
from lorap_exp.evaluation.perplexity import mean_nll, tokenize
from lorap_exp.models.checkpoint import class_in, load, save
from lorap_exp.models.headers import weight_bytes
from lorap_exp.models.tokenizers import open_tokenizer

CONVERTER = "convert_hf_to_gguf.py"
CHUNK, TOKENS = 128, 4096
"""Of the embedded text on which a form is compared with its folder."""
MOST = 0.005
"""Relative difference of perplexities that a GGUF file may have."""


def sample_of(folder: Path) -> Tensor:
    """Chunks of some embedded text in the tokens of a saved model."""
    text = Text("embedded", "pydoc", "train", "\n\n".join(part(0)))
    return tokenize(text, open_tokenizer(folder), CHUNK, TOKENS)


def to_int8(folder: Path, output: Path) -> str:
    """Write a saved model with its linear layers in int8, as torchao stores them; what it costs.

    The folder opens in transformers where torchao is installed.

    Raises:
        LorapError: torchao is missing, or the folder does not give its model back.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise LorapError("--to int8 needs the extra quantise: pip install torchao") from error
    chunks = sample_of(folder)
    before = mean_nll(load(folder), chunks, 8)
    settings = TorchAoConfig(Int8WeightOnlyConfig())
    model = class_in(folder).from_pretrained(
        str(folder), dtype="auto", quantization_config=settings
    )
    after = mean_nll(model, chunks, 8)
    save(model, open_tokenizer(folder), output)
    again = class_in(output).from_pretrained(str(output), dtype="auto")
    if (read := mean_nll(again, chunks, 8)) != after:
        raise LorapError(f"'{output}' must give its model back, but loses {read - after:.2g} nats")
    sizes = [weight_bytes(place) / 2**20 for place in (folder, output)]
    return (
        f"{output}: {sizes[1]:.1f} MiB of {sizes[0]:.1f}, perplexity of embedded text "
        f"{math.exp(before):.2f} -> {math.exp(after):.2f}; opens where torchao is installed"
    )


def to_gguf(folder: Path, output: Path, kind: str) -> str:
    """Write a stock folder as a GGUF file of one type, its perplexity compared.

    Raises:
        LorapError: llama.cpp's converter is missing or fails, or the file says something else.
    """
    command = [sys.executable, str(find_converter()), str(folder), "--outfile", str(output)]
    command += ["--outtype", kind]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0 or not output.is_file():
        last = (run.stderr or run.stdout).strip().splitlines()[-1:]
        raise LorapError(f"llama.cpp's {CONVERTER} failed on '{folder}': {' '.join(last)}")
    difference = _gguf_difference(folder, output)
    size = output.stat().st_size / 2**20
    return f"{output}: {size:.1f} MiB, perplexity within {difference:.2%} of the folder's"


def find_converter() -> Path:
    """llama.cpp's converter: in LLAMA_CPP, or on the path.

    Raises:
        LorapError: it is not installed.
    """
    places = [Path(os.environ["LLAMA_CPP"]) / CONVERTER] if "LLAMA_CPP" in os.environ else []
    places += [Path(found) for found in [shutil.which(CONVERTER)] if found]
    for place in places:
        if place.is_file():
            return place
    raise LorapError(
        f"--to gguf needs llama.cpp's {CONVERTER}: put it on the PATH, or name the folder of "
        f"llama.cpp by the environment variable LLAMA_CPP"
    )


def _gguf_difference(folder: Path, output: Path) -> float:
    """Relative difference of the perplexities of the file, read back by transformers, and folder.

    Raises:
        LorapError: it is above 0.5 %.
    """
    file = AutoModelForCausalLM.from_pretrained(
        output.parent, gguf_file=output.name, dtype=torch.float32
    )
    chunks = sample_of(folder)
    before, after = (mean_nll(m, chunks, 8) for m in (load(folder, dtype=torch.float32), file))
    difference = abs(math.expm1(after - before))
    if not difference <= MOST:
        raise LorapError(
            f"'{output}' must have the folder's perplexity within {MOST:.1%}, got {difference:.2%}"
        )
    return difference
