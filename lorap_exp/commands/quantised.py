"""Saved models in the forms of quantisers: llama.cpp's GGUF files, and packed integers."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lorap_exp.data.embedded import part
from lorap_exp.data.source import Text
from lorap_exp.errors import LorapError
from lorap_exp.evaluation.perplexity import mean_nll, tokenize
from lorap_exp.models.checkpoint import check_reload, load, load_config, save
from lorap_exp.models.headers import weight_bytes
from lorap_exp.models.openness import GROUP, openness, row_lengths
from lorap_exp.models.quantised import check_quantisable, pack
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


def to_integers(folder: Path, output: Path, to: str) -> str:
    """Write a saved model with its matrices in int8 or int4, rounded to nearest; what it costs.

    Raises:
        LorapError: compressed-tensors is missing, rows are no multiple of a group, or the folder
            does not give its model back.
    """
    config = load_config(folder)
    check_quantisable(config, f"--to {to}")
    if to == "int4" and (odd := sorted({n for n in row_lengths(config) if n % GROUP})):
        raise LorapError(
            f"--to int4 needs rows that are multiples of {GROUP}, got {', '.join(map(str, odd))}: "
            f"round_to={GROUP} in the stages of the method avoids it, --to int8 takes any"
        )
    model, chunks = load(folder), sample_of(folder)
    before = mean_nll(model, chunks, 8)
    packed = pack(model, to, GROUP, {})
    save(model, open_tokenizer(folder), output, packed=packed)
    check_reload(model, output, chunks[:2])
    after = mean_nll(model, chunks, 8)
    sizes = [weight_bytes(place) / 2**20 for place in (folder, output)]
    return (
        f"{output}: {sizes[1]:.1f} MiB of {sizes[0]:.1f}, perplexity of embedded text "
        f"{math.exp(before):.2f} -> {math.exp(after):.2f}; {openness(load_config(output))}"
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
