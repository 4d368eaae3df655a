from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    MambaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
    ViTConfig,
)

from lorap_exp.errors import LorapError
from lorap_exp.models.loading import load_config, load_model, load_tokenizer
from lorap_exp.models.tiny import byte_tokenizer, random_config
from lorap_exp.schema.inputs import ModelConfig, RandomModelConfig


def at(path: str) -> ModelConfig:
    return ModelConfig(name="x", path=path, revision=None, random=None)


def test_a_local_folder(tmp_path: Path, tiny: Callable[..., PreTrainedModel], family: str) -> None:
    dense = tiny(family)
    if family == "phi3":
        pytest.skip("the stock checkpoint is fused: see test_phi3_is_split")
    dense.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model = at(str(tmp_path))
    loaded = load_model(model, load_config(model), torch.device("cpu"), torch.float32, seed=0)
    ids = torch.arange(10)[None]
    assert torch.equal(loaded(ids).logits, dense(ids).logits)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert load_tokenizer(model).decode(load_tokenizer(model)("hé")["input_ids"]) == "hé"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (T5Config(), "encoder-decoder 't5'"),
        (BertConfig(), "'bert' has no attention projections q"),
        (MambaConfig(num_hidden_layers=2, hidden_size=32), "'mamba' has no "),
        (ViTConfig(), "transformers knows, got model_type 'vit'"),
    ],
)
def test_a_non_causal_model_is_refused(
    tmp_path: Path, config: PreTrainedConfig, message: str
) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(LorapError, match=message):
        load_config(at(str(tmp_path)))


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nowhere", "~/nowhere", "plainword"])
def test_a_missing_folder_is_named(path: str) -> None:
    with pytest.raises(LorapError, match=rf"model.path must be .* got '{path}'"):
        load_config(at(path))


def test_a_hub_out_of_reach_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LorapError, match="got 'no-one/no-model'") as caught:
        load_config(at("no-one/no-model"))
    assert "\n" not in str(caught.value)


def test_phi3_is_split(tmp_path: Path) -> None:
    random = RandomModelConfig(
        family="phi3", blocks=2, hidden_size=64, intermediate_size=96, heads=4, kv_heads=2
    )
    stock = AutoModelForCausalLM.from_config(random_config(random), dtype=torch.float32).eval()
    stock.save_pretrained(tmp_path)
    model = at(str(tmp_path))
    split = load_model(model, load_config(model), torch.device("cpu"), torch.float32, seed=0)
    ids = torch.arange(10)[None]
    torch.testing.assert_close(split(ids).logits, stock(ids).logits)
    assert split.model.layers[0].self_attn.qkv_proj.k_proj.weight.shape == (32, 64)
