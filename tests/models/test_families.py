"""Every decoder: recognised, compressed, saved, and opened where lorap_exp is not installed."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from lorap_exp import pipeline
from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.models.checkpoint import check_reload, save
from lorap_exp.models.counting import count_parameters
from lorap_exp.models.experts import experts_setting, keep_experts
from lorap_exp.models.families import (
    blocks_of,
    decoder_family,
    embedding_of,
    final_norm_of,
    head_of,
    shapes_of,
    split_fused,
)
from lorap_exp.models.forms import as_compressed, export
from lorap_exp.models.stock import stock_settings
from lorap_exp.models.structure import Family
from lorap_exp.models.tiny import byte_tokenizer, random_config
from lorap_exp.schema.inputs import RandomModelConfig
from tests.models.compressing import IDS, rewrite

DENSE = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "olmo2",
    "granite",
    "phi3",
    "glm4",
    "smollm3",
    "stablelm",
    "cohere2",
    "gpt_neox",
    "gpt2",
    "opt",
    "opt350",
    "falcon",
    "bloom",
)
MIXTURES = ("mixtral", "qwen3_moe")
Tiny = Callable[..., PreTrainedModel]
SCRIPT = Path(__file__).parent / "open_folder.py"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every family compressed and saved here, and what a process without lorap_exp says of it."""
    root = tmp_path_factory.mktemp("families")
    expected = {}
    for family in (*DENSE, *MIXTURES):
        model = make(family)
        config = model.config
        result = as_compressed(model, rewrite(model), config)
        save(result, byte_tokenizer(), root / family)
        check_reload(result, root / family, IDS)
        expected[family] = {"logits": result(IDS).logits.double().sum().item()}
    torch.save(IDS, root / "ids.pt")
    environment = {"HF_HOME": str(root / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(SCRIPT), str(root), *expected],
        capture_output=True,
        text=True,
        env=environment | {"PATH": os.environ["PATH"]},
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    return {family: {"expected": expected[family]} | found[family] for family in expected}


def make(family: str, **sizes: int) -> PreTrainedModel:
    usual = {"blocks": 2, "hidden_size": 64, "intermediate_size": 176, "heads": 4, "kv_heads": 2}
    torch.manual_seed(0)
    config = random_config(RandomModelConfig(family=family, **usual | sizes))
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return split_fused(model)


@pytest.mark.parametrize("family", [*DENSE, *MIXTURES])
def test_splitting_changes_no_logit(family: str) -> None:
    usual = {"blocks": 2, "hidden_size": 64, "intermediate_size": 176, "heads": 4, "kv_heads": 2}
    config = random_config(RandomModelConfig(family=family, **usual))
    stock = AutoModelForCausalLM.from_config(config).eval()
    expected = stock(IDS).logits
    found = decoder_family(stock)
    torch.testing.assert_close(split_fused(stock)(IDS).logits, expected)
    assert decoder_family(stock) == found == Family.from_layout(json_copy(found.layout()))


def json_copy(value: Any) -> Any:
    return json.loads(json.dumps(value, sort_keys=True))


@pytest.mark.parametrize("family", [*DENSE, *MIXTURES])
def test_it_opens_without_lorap_exp(opened: dict[str, Any], family: str) -> None:
    found = opened[family]
    assert found["logits"] == pytest.approx(found["expected"]["logits"], rel=1e-6, abs=1e-6)
    assert found["again"] == found["logits"]
    assert found["classes"][0].startswith("Compressed") and "Model" in found["base"]
    assert found["left_padded"] == found["alone"] == found["without_cache"]


@pytest.mark.parametrize("family", sorted({*DENSE} - {"bloom"}))
def test_the_classifier_stands_on_the_compressed_model(opened: dict[str, Any], family: str) -> None:
    found = opened[family]["classifier"]
    if opened[family]["has_classifier"]:
        assert found["base_equal"] and found["classes"] == 3


@pytest.mark.parametrize("family", [*DENSE, *MIXTURES])
def test_parameters_are_within_one_rounding_step(family: str) -> None:
    model = make(family)
    shapes, config = shapes_of(model), model.config
    before = count_parameters(model)
    result = as_compressed(model, rewrite(model), config)
    after = count_parameters(result)
    matrices = [m for s in shapes for name, m in s.matrices.items() if name != "experts"]
    dense = sum(matrix.parameters for matrix in matrices)
    steps = sum(matrix.out_features + matrix.in_features for matrix in matrices)
    biases = sum(p.numel() for n, p in result.named_parameters() if n.endswith(".bias"))
    assert before["decoder"] - after["decoder"] <= 0.3 * dense + steps + biases
    assert before["decoder"] - after["decoder"] >= 0.3 * dense - steps
    assert before["total"] == sum(p.numel() for p in model_parameters(make(family)))


def model_parameters(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    return list(model.parameters())


@pytest.mark.parametrize("family", [*DENSE, *MIXTURES])
def test_dense_export_is_stock_where_the_architecture_has_a_width(family: str) -> None:
    model = make(family)
    config = model.config
    result = as_compressed(model, rewrite(model), config)
    assert "factors" in str(stock_settings(result.config))
    expected = result(IDS).logits
    dense = export(result, config, "dense")
    torch.testing.assert_close(dense(IDS).logits, expected, atol=1e-5, rtol=1e-4)
    if family == "bloom":
        assert stock_settings(dense.config) == "BloomConfig has no setting for the width of its MLP"
    else:
        assert dense.config.model_type == config.model_type
        assert not type(dense).__name__.startswith("Compressed")


@pytest.mark.parametrize("family", [*DENSE, *MIXTURES])
def test_the_parts_around_the_layers(family: str) -> None:
    model = make(family)
    assert embedding_of(model) is model.get_input_embeddings()
    assert head_of(model) is model.get_output_embeddings()
    norm = final_norm_of(model)
    assert (norm is None) == (family == "opt350")
    found = decoder_family(model)
    block = blocks_of(model)[0]
    if family in ("olmo2", "opt350"):
        with pytest.raises(LorapError, match="has no norms before"):
            _ = block.norms
    else:
        seen: list[str] = []
        for name, projection in (("attention", "q"), ("mlp", "down")):
            if projection in block.family.matrices:
                block.linear(projection).register_forward_hook(
                    lambda *call, name=name: seen.append(name)
                )
        for which, norm in zip(("first", "second"), block.norms, strict=True):
            norm.register_forward_hook(lambda *call, which=which: seen.append(which))
        model(IDS)
        assert seen.index("first") < seen.index("attention")
    assert found.plain_residual == (
        family not in ("gemma2", "gemma3_text", "olmo2", "glm4", "opt350")
    )


FIXED = {"bloom", "falcon", "gpt2", "gpt_neox", "olmo2", "opt", "opt350", "phi3", "stablelm"}


@pytest.mark.parametrize("family", [*DENSE, *MIXTURES])
def test_families_that_read_their_heads_run_with_fewer(family: str) -> None:
    """What structure says of the number of heads is true."""
    model = make(family)
    assert decoder_family(model).reads_heads == (family not in FIXED)
    if family in FIXED:
        return
    for block in blocks_of(model):
        for name in ("q", "k", "v", "o"):
            linear = block.linear(name)
            if name == "o":
                half = torch.nn.Linear(linear.in_features // 2, linear.out_features)
            else:
                half = torch.nn.Linear(linear.in_features, linear.out_features // 2)
            block.replace(name, half)
    assert model(IDS).logits.isfinite().all()


@pytest.mark.parametrize(
    ("family", "missing"),
    [
        ("deepseek_v3", "no attention projections q, k, v"),
        ("mamba", "no attention projections"),
        ("qwen3_next", "no attention projections"),
        ("minimax", "layers of several kinds: layer 1 has no self_attn.q_proj"),
    ],
)
def test_what_cannot_be_understood_is_named(family: str, missing: str) -> None:
    with pytest.raises(LorapError, match=f"'{family}' has {missing}") as caught:
        make(family)
    assert "\n" not in str(caught.value)


def test_a_name_unknown_to_transformers_is_refused() -> None:
    with pytest.raises(LorapError, match=r"model.random.family must .* got 'lama'"):
        make("lama")


@pytest.mark.parametrize("family", MIXTURES)
def test_fewer_experts_are_a_stock_mixture(family: str, tmp_path: Path) -> None:
    model = make(family)
    config = model.config
    for block in blocks_of(model):
        keep_experts(block, [0, 2, 3])
    expected = model(IDS).logits
    result = as_compressed(model, {"stock": experts_setting(config, 3)}, config)
    assert torch.equal(result(IDS).logits, expected)
    stock = export(result, config, "factored")
    assert stock.config.model_type == config.model_type
    assert torch.equal(stock(IDS).logits, expected)
    save(stock, byte_tokenizer(), tmp_path / "model")
    check_reload(stock, tmp_path / "model", IDS)
    assert count_parameters(stock)["mlp"] < count_parameters(make(family))["mlp"] * 0.76


def test_what_experts_cannot_be_kept_is_said() -> None:
    mixture, plain = make("mixtral"), make("llama")
    with pytest.raises(LorapError, match=r"ratio must leave 2 to 4 of 4 experts .* got 1"):
        experts_setting(mixture.config, 1)
    with pytest.raises(LorapError, match="from a mixture only, got 'llama'"):
        experts_setting(plain.config, 2)
    with pytest.raises(LorapError, match="'llama' has no experts in block 0"):
        keep_experts(blocks_of(plain)[0], [0])
    with pytest.raises(LorapError, match="has no matrix 'up', only q, k, v, o; its MLP is a mix"):
        blocks_of(mixture)[0].linear("up")


PAGE = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")


def test_every_family_is_documented() -> None:
    for name in {*DENSE, *MIXTURES} - {"opt350"}:
        assert re.search(rf"\b{name}\b", PAGE), name


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.S))
def test_the_code_of_the_page_runs(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorap_exp.models.structure.TRAITS", {})
    exec(code, {})


@pytest.mark.parametrize("method", ["lorap", "lorap_plus", "flap", "slimgpt", "modegpt", "olica"])
def test_channels_of_a_mixture_are_refused(
    config: Callable[..., Config], method: str, tmp_path: Path
) -> None:
    """In one sentence, with what works instead; `tests/test_streaming.py` runs attention alone."""
    cfg = config("model.random.family=mixtral", f"method={method}", "ratio=0.1")
    with pytest.raises(LorapError, match="its MLP is a mixture of experts; a method of attention"):
        pipeline.run(cfg, tmp_path / "job")
