"""A saved folder in other versions of transformers, in other people's hands, in other tools."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lorap_exp.models.checkpoint import check_reload, load, save
from lorap_exp.models.families import split_fused
from lorap_exp.models.forms import as_compressed, export
from lorap_exp.models.tiny import byte_tokenizer, random_config
from lorap_exp.schema.inputs import RandomModelConfig
from tests.models.compressing import IDS, rewrite

Tiny = Callable[..., PreTrainedModel]
ROPES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"rope_type": "default", "rope_theta": 5e4}),
    "linear": ("llama", {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e4}),
    "dynamic": ("llama", {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 5e4}),
    "llama3": (
        "llama",
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
            "rope_theta": 5e5,
        },
    ),
    "yarn": (
        "qwen2",
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "rope_theta": 5e4,
            "original_max_position_embeddings": 1024,
        },
    ),
    "longrope": (
        "phi3",
        {
            "rope_type": "longrope",
            "short_factor": [1.1] * 8,
            "long_factor": [4.0] * 8,
            "rope_theta": 2e4,
            "original_max_position_embeddings": 8,
        },
    ),
    "two kinds": (
        "gemma3_text",
        {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
        },
    ),
    "partial": (
        "stablelm",
        {"rope_type": "default", "rope_theta": 3e4, "partial_rotary_factor": 0.5},
    ),
}
SCRIPT = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_grad_enabled(False)
ids, *folders = sys.argv[1:]
ids = torch.tensor([[int(i) for i in ids.split(",")]])
found = {}
for folder in folders:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    energy = model(ids).logits.double().square().sum().item()
    found[folder] = [energy, tokenizer("a b").input_ids]
print(json.dumps(found))
"""


def with_rope(name: str) -> PreTrainedModel:
    family, rope = ROPES[name]
    sizes = {"blocks": 2, "hidden_size": 64, "intermediate_size": 96, "heads": 4, "kv_heads": 2}
    config = random_config(RandomModelConfig(family=family, **sizes))
    settings = config.to_dict() | {"rope_parameters": rope}
    settings.pop("model_type")
    if name == "longrope":
        settings["original_max_position_embeddings"] = 8
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(type(config)(**settings))
    return split_fused(model.eval().requires_grad_(False))


def saved(name: str, form: str, folder: Path) -> PreTrainedModel:
    model = with_rope(name)
    config = model.config
    result = as_compressed(model, rewrite(model), config)
    result = export(result, config, form)
    save(result, byte_tokenizer(), folder)
    return result


@pytest.mark.parametrize("form", ["factored", "dense"])
@pytest.mark.parametrize("name", ROPES)
def test_both_forms_of_rotary_positions(name: str, form: str, tmp_path: Path) -> None:
    result = saved(name, form, tmp_path / "model")
    check_reload(result, tmp_path / "model", IDS)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    rope = ROPES[name][1]
    rope = rope.get("full_attention", rope)
    assert config["rope_theta"] == rope["rope_theta"]
    if rope["rope_type"] == "default":
        assert not config.get("rope_scaling")
    else:
        scaling = config["rope_scaling"]
        assert scaling.get("rope_type", scaling.get("type")) == rope["rope_type"]
    if name == "two kinds":
        assert config["rope_local_base_freq"] == 2e4
    if name == "partial":
        assert config["partial_rotary_factor"] == 0.5


@pytest.mark.slow
def test_transformers_4_gives_the_same_numbers(tmp_path: Path) -> None:
    """LORAP_TRANSFORMERS_4 names the python of an environment with transformers 4.57."""
    python = os.environ.get("LORAP_TRANSFORMERS_4")
    if python is None:
        pytest.skip("LORAP_TRANSFORMERS_4 names no python with transformers 4.57")
    expected = {}
    for name in ROPES:
        for form in ("factored", "dense"):
            folder = str(tmp_path / f"{name} {form}")
            logits = saved(name, form, Path(folder))(IDS[:1]).logits
            expected[folder] = logits.double().square().sum().item()
    run = subprocess.run(
        [python, "-c", SCRIPT, ",".join(map(str, IDS[0].tolist())), *expected],
        capture_output=True,
        text=True,
        check=False,
        env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": os.environ["PATH"]},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    for folder, (energy, ids) in found.items():
        assert energy == pytest.approx(expected[folder], rel=1e-5), folder
        assert ids == byte_tokenizer()("a b")["input_ids"]


def test_an_older_transformers_is_refused_by_name(tmp_path: Path) -> None:
    saved("plain", "factored", tmp_path / "model")
    program = (
        "import sys, transformers; transformers.__version__ = '4.51.3'; "
        f"sys.path.insert(0, {str(tmp_path / 'model')!r}); import modeling_compressed"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode != 0
    assert "needs transformers 4.56 or newer, got 4.51.3" in run.stderr


def test_the_files_are_for_everyone(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny()
    model.config._name_or_path = str(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.init_kwargs |= {"is_local": True, "local_files_only": True, "name_or_path": "/home/x"}
    tokenizer.add_special_tokens({"additional_special_tokens": ["<x>"]})
    config = model.config
    save(as_compressed(model, rewrite(model), config), tokenizer, tmp_path / "model")
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o644}
    texts = [path.read_text() for path in (tmp_path / "model").glob("*.json")]
    assert not any(str(tmp_path) in text or "/home/x" in text for text in texts)
    told = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert {"is_local", "local_files_only", "name_or_path", "model_max_length"}.isdisjoint(told)
    again = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert again("a<x>")["input_ids"] == tokenizer("a<x>")["input_ids"]
    assert len(again("a<x>")["input_ids"]) == 2


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gpt_neox"])
def test_an_engine_builds_the_base_model_and_attends_itself(
    tiny: Tiny, family: str, tmp_path: Path
) -> None:
    """What vLLM's transformers backend and SGLang's do with a custom model."""
    from transformers import AutoConfig
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    dense = tiny(family)
    config = dense.config
    result = as_compressed(dense, rewrite(dense), config)
    save(result, byte_tokenizer(), tmp_path / "model")
    seen: list[Any] = []

    def engine(module: Any, *args: Any, attention_instances: Any = None, **kwargs: Any) -> Any:
        seen.append(attention_instances[module.layer_idx])
        return sdpa_attention_forward(module, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS["engine"] = engine
    found = AutoConfig.from_pretrained(tmp_path / "model", trust_remote_code=True)
    assert any(name.startswith("AutoModel") for name in found.auto_map)
    found._attn_implementation = "engine"
    with torch.device("meta"):
        empty = AutoModel.from_config(found, trust_remote_code=True)
    assert empty._supports_attention_backend
    assert empty.is_backend_compatible()
    model = AutoModel.from_pretrained(
        tmp_path / "model", trust_remote_code=True, attn_implementation="engine"
    )
    assert model.state_dict().keys() == empty.state_dict().keys()
    positions = torch.arange(16)[None]
    hidden = model(
        IDS[:1],
        use_cache=False,
        position_ids=positions,
        attention_instances={0: "first", 1: "second"},
        return_dict=False,
    )[0]
    assert seen == ["first", "second"]
    expected = load(tmp_path / "model").base_model(IDS[:1]).last_hidden_state
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-4)
