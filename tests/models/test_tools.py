"""Compressed models under peft, and split over processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from lorap_exp.models.checkpoint import load, save
from lorap_exp.models.families import blocks_of, decoder_family
from lorap_exp.models.forms import as_compressed
from lorap_exp.models.modeling_compressed import reshape_linear
from lorap_exp.models.tiny import byte_tokenizer
from tests.models.compressing import IDS, fill, rewrite

Tiny = Callable[..., PreTrainedModel]
USUAL = ["q_proj", "k_proj", "v_proj", "o_proj"]
TARGETS: dict[str, Any] = {
    "default": None,
    "usual": USUAL,
    "all-linear": "all-linear",
    "factors": r".*\.(left|right)\..*",
}


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox"])
def test_lora_by_the_usual_names(tiny: Tiny, family: str, targets: str, tmp_path: Path) -> None:
    model = tiny(family)
    config = model.config
    save(as_compressed(model, rewrite(model), config), byte_tokenizer(), tmp_path / "model")
    base = load(tmp_path / "model")
    settings = LoraConfig(r=2, target_modules=TARGETS[targets], init_lora_weights=False)
    adapted = get_peft_model(base, settings).eval()
    touched = {name for name, _ in adapted.named_parameters() if "lora_A" in name}
    if targets == "usual" and family != "gpt_neox":
        assert len(touched) == 16  # two factors of four projections in two layers
    assert any(".left." in name for name in touched) and any(".right." in name for name in touched)
    logits = adapted(IDS).logits
    assert not torch.allclose(logits, load(tmp_path / "model")(IDS).logits, atol=1e-3)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(load(tmp_path / "model"), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(again(IDS).logits, logits)
    merged = again.merge_and_unload()
    torch.testing.assert_close(merged(IDS).logits, logits, atol=1e-4, rtol=1e-4)
    save(merged, byte_tokenizer(), tmp_path / "merged")
    assert torch.equal(load(tmp_path / "merged")(IDS).logits, merged(IDS).logits)


PARALLEL = """
import sys, torch, torch.distributed as dist
from transformers import AutoModelForCausalLM
folder = sys.argv[1]
whole = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
split = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, tp_plan="auto").eval()
ids = torch.arange(1, 33).view(2, 16)
with torch.no_grad():
    expected, found = whole(ids).logits, split(ids).logits
found = found.full_tensor() if hasattr(found, "full_tensor") else found
difference = ((found - expected).norm() / expected.norm()).item()
local = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in split.parameters())
assert local < sum(p.numel() for p in whole.parameters()), "nothing was split"
assert difference < 1e-5, difference
print("difference", difference)
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox"])
@pytest.mark.parametrize("mixed", [False, True])
def test_tensor_parallelism_is_exact(tiny: Tiny, family: str, mixed: bool, tmp_path: Path) -> None:
    """Two gloo processes; in `mixed` one layer only is factored."""
    model = tiny(family)
    config = model.config
    settings = mix(model) if mixed else rewrite(model)
    save(as_compressed(model, settings, config), byte_tokenizer(), tmp_path / "model")
    (tmp_path / "run.py").write_text(PARALLEL)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run = subprocess.run(
        [*launcher, "--nproc-per-node=2", str(tmp_path / "run.py"), str(tmp_path / "model")],
        capture_output=True,
        text=True,
        check=False,
        env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": os.environ["PATH"]},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("difference") == 2


def mix(model: PreTrainedModel) -> dict[str, Any]:
    """Factors in the second layer only."""
    family, modules = decoder_family(model), {}
    block = blocks_of(model)[1]
    for name in ("q", "k", "v", "o"):
        block.replace(name, fill(reshape_linear(block.linear(name), rank=8)))
        modules[family.path(1, name)] = {"rank": 8}
    return {"compressed_modules": modules}
