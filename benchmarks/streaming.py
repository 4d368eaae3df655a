"""A model larger than memory: peak memory and time of a streamed job beside one in memory.

`python -m benchmarks.streaming [--samples N] [--layers N]` makes a random Llama-shaped checkpoint
(22 layers, hidden 2048, MLP 5632, 32 / 4 heads, vocabulary 32,000: 1.1B parameters, bfloat16, four
shards), compresses it with LoRAP at 0.2 in two processes, one after the other, and compares.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from lorap_exp.models.tiny import byte_tokenizer
from lorap_exp.workspace.digests import digest_folder

EMPTY = """
import lorap_exp.pipeline
lines = open("/proc/self/status").read().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""
DESCRIPTIONS = {"README.md", "plan.json", "result.json"}


def llama(layers: int = 22) -> LlamaConfig:
    """The shape of TinyLlama, 1.1B parameters with all its layers."""
    return LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=2048,
        intermediate_size=5632,
        num_attention_heads=32,
        num_key_value_heads=4,
        vocab_size=32_000,
        max_position_embeddings=2048,
    )


def checkpoint(folder: Path, layers: int) -> int:
    """Write the random model; its bytes."""
    config = llama(layers)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="600MB")
    byte_tokenizer().save_pretrained(folder)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def run(*arguments: str) -> str:
    """What a process of its own prints; a failure ends the benchmark with its reason."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--layers", type=int, default=22)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        model = Path(root) / "model"
        size = checkpoint(model, asked.layers)
        common = [
            "model=custom", f"model.path={model}", "dtype=bfloat16", "method=lorap", "ratio=0.2",
            "data=embedded", "calibration=embedded", f"calibration.samples={asked.samples}",
            "calibration.hidden_states=disk", "logging=disabled", "evaluation=perplexity",
            "evaluation.perplexity.texts=[ptb]", "evaluation.perplexity.max_tokens=128",
        ]  # fmt: skip
        empty = int(run("-c", EMPTY)) * 1024
        peaks, times, files = {}, {}, {}
        for name, stream in (("in memory", "false"), ("streamed", "true")):
            place = [f"output_root={root}/{stream}", "name=bench", f"stream={stream}"]
            run("-m", "lorap_exp", *common, *place)
            (result,) = Path(root, stream, "bench").glob("*/result.json")
            raw = json.loads(result.read_text())
            times[name] = raw["seconds"]["compress"] + raw["seconds"]["save"]
            peaks[name] = max(
                peak for stage, peak in raw["peak_memory"].items()
                if stage in ("compress host", "save host")
            )  # fmt: skip
            digests = digest_folder(result.parent / "model")
            files[name] = {k: v for k, v in digests.items() if k not in DESCRIPTIONS}
    ratio = times["streamed"] / times["in memory"]
    same = "yes" if files["streamed"] == files["in memory"] else "no"
    print(f"checkpoint {size / 2**30:.2f} GiB, {asked.samples} x 128 tokens\n")
    print("| what | measured | limit |\n| --- | --- | --- |")
    for name, peak in peaks.items():
        limit = "<= 0.35" if name == "streamed" else ""
        share = (peak - empty) / size
        print(f"| peak above an empty process / checkpoint, {name} | {share:.2f} | {limit} |")
    print(f"| seconds of compressing and saving, streamed / in memory | {ratio:.2f} | <= 1.3 |")
    print(f"| identical files | {same} | yes |")


if __name__ == "__main__":
    main()
