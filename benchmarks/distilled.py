"""Distillation of a saved model, tried without compressing it again.

`python -m benchmarks.distilled COMPRESSED DENSE DATA learning_rate=1e-4 seconds=160 …` takes two
saved folders and a folder of real texts, and prints the divergence of held-out windows at each
validation and the perplexity of 16,384 tokens of WikiText-2 and PTB in chunks of 128. Settings are
those of the stage `distillation`.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path

import torch
import yaml

from lorap_exp.calibration.sampling import packed_windows, split_file
from lorap_exp.calibration.walk import Walk
from lorap_exp.data.local import Local
from lorap_exp.evaluation.perplexity import mean_nll, tokenize
from lorap_exp.evaluation.profiles import PROFILES, read_text
from lorap_exp.methods.contract import Whole
from lorap_exp.methods.distillation import Distillation
from lorap_exp.models.checkpoint import load
from lorap_exp.models.source import Source
from lorap_exp.models.tokenizers import open_tokenizer
from lorap_exp.workspace.memory import keep_freed_memory

SETTINGS = {
    "text": "file",
    "split": "train",
    "separator": "line",
    "length": 128,
    "tokens": 150_000,
    "seconds": 160.0,
    "validation_samples": 32,
    "temperature": 1.0,
    "top": None,
    "learning_rate": 1e-4,
    "warmup_steps": 5,
    "batch_size": 16,
    "micro_batch": 16,
    "evaluate_every": 40,
    "seed": 0,
}


def main() -> None:
    """Print what training gave."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("compressed", type=Path)
    parser.add_argument("dense", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("settings", nargs="*", help="name=value")
    asked = parser.parse_args()
    keep_freed_memory()
    given = {key: yaml.safe_load(value) for key, value in (s.split("=") for s in asked.settings)}
    given = {k: float(v) if k == "learning_rate" else v for k, v in given.items()}
    file = str(asked.data / "calibration" / "c4_sample.txt")
    step = Distillation(**{"file": file} | SETTINGS | given)
    tokenizer = open_tokenizer(asked.compressed)
    windows = packed_windows(
        split_file(str(step.file), step.separator, "file"),
        tokenizer,
        held_out=step.validation_samples,
        samples=step.validation_samples + step.tokens // step.length,
        length=step.length,
        seed=step.seed,
        bos=None,
        setting="tokens",
    )
    with tempfile.TemporaryDirectory() as scratch:
        part = Whole(
            lambda: Source(load(asked.compressed, dtype=torch.bfloat16)),
            calibration=None,
            how=Walk(8),
            read=windows,
            original=lambda: Source(load(asked.dense, dtype=torch.bfloat16)),
            folder=Path(scratch),
            bars=lambda label, unit: iter,
        )
        start = time.monotonic()
        step.apply(part, [], None, {})
    curve = part.curves["recovery"]
    print(f"{len(curve.train)} steps, {time.monotonic() - start:.0f} s; {curve.validation}")
    for name in ("wikitext2", "ptb"):
        text = read_text(name, PROFILES["lorap"], Local(asked.data))
        nll = mean_nll(part.model, tokenize(text, tokenizer, 128, 16_384), 16)
        print(f"{text.label}: perplexity {math.exp(nll):.2f}")


if __name__ == "__main__":
    main()
