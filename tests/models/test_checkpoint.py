import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import lorap_exp
from lorap_exp.commands.info import describe
from lorap_exp.errors import LorapError
from lorap_exp.methods.low_rank import LowRank
from lorap_exp.methods.pruning import ChannelPruning, HeadPruning
from lorap_exp.methods.stack import Stack
from lorap_exp.models.checkpoint import check_reload, save
from lorap_exp.models.counting import count_parameters
from lorap_exp.models.families import blocks_of
from lorap_exp.models.forms import export
from lorap_exp.models.loading import load_config, load_model
from lorap_exp.models.modeling_compressed import LowRankLinear
from lorap_exp.models.tiny import byte_tokenizer
from lorap_exp.planning.edits import Plan
from lorap_exp.schema.inputs import ModelConfig
from tests.methods.stacks import compress, rebuilt, shape_of

Tiny = Callable[..., PreTrainedModel]
IDS = torch.arange(8 * 16).view(8, 16) % 200
LORAP = Stack(
    (
        (
            "attention",
            LowRank(("q", "k", "v", "o"), "awsvd", 1.0, "published", 3.0, 1, True, "pair"),
        ),
        ("mlp", ChannelPruning("published", 0.01, 1, True, 0)),
    )
)


def compressed(model: PreTrainedModel, ratio: float = 0.3) -> tuple[PreTrainedModel, Plan]:
    plan = compress(model, LORAP, ratio, IDS)
    return rebuilt(model, plan), plan


def test_as_compressed_changes_no_logit_and_shares_the_weights(tiny: Tiny, family: str) -> None:
    model = tiny(family)
    result, _ = compressed(model)
    torch.testing.assert_close(result(IDS).logits, model(IDS).logits, rtol=0, atol=0)
    pointers = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in result.parameters()} == pointers


def test_parameters_are_those_of_the_plan(tiny: Tiny, family: str) -> None:
    model = tiny(family)
    dense, before = shape_of(model), count_parameters(model)
    result, plan = compressed(model)
    biases = sum(p.numel() for n, p in result.named_parameters() if "bias" in n and "norm" not in n)
    after = count_parameters(result)
    assert after["decoder"] == plan.shape(dense).parameters + biases
    assert before["total"] == sum(p.numel() for p in model.parameters()) + (
        before["decoder"] - after["decoder"]
    )
    assert abs(plan.shape(dense).parameters / dense.parameters - 0.7) < 0.01


def test_biases_survive(tiny: Tiny) -> None:
    model = tiny("qwen2")
    before = blocks_of(model)[0].linear("q").bias.clone()
    compressed(model)
    assert torch.equal(blocks_of(model)[0].linear("q").bias, before)


def test_save_load_generate(tiny: Tiny, family: str, tmp_path: Path) -> None:
    result, _ = compressed(tiny(family))
    folder = tmp_path / "model"
    save(result, byte_tokenizer(), folder)
    check_reload(result, folder, IDS)
    loaded = [lorap_exp.load(folder), AutoModelForCausalLM.from_pretrained(folder)]
    for model in loaded:
        assert torch.equal(model(IDS).logits, result(IDS).logits)
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    with_cache = loaded[0].generate(IDS, use_cache=True, **options)
    assert torch.equal(with_cache, result.generate(IDS, use_cache=False, **options))
    assert not list(folder.glob("*.bin")) and not list(folder.glob("*.pt"))
    assert (folder / "tokenizer.json").is_file()


def test_loads_without_lorap_exp(tiny: Tiny, tmp_path: Path) -> None:
    """The modelling file beside the weights is complete in itself."""
    result, _ = compressed(tiny())
    folder = tmp_path / "model"
    save(result, byte_tokenizer(), folder)
    script = (
        "import sys, torch\n"
        "sys.modules['lorap_exp'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code=True)\n"
        "ids = torch.arange(8 * 16).view(8, 16) % 200\n"
        "print(model(ids).logits.double().sum().item())\n"
    )
    environment = {"HF_HOME": str(tmp_path / "hf"), "PATH": "", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    expected = result(IDS).logits.double().sum().item()
    assert float(run.stdout) == pytest.approx(expected, rel=1e-6)


def test_a_changed_weight_is_found_on_reload(tiny: Tiny, tmp_path: Path) -> None:
    result, _ = compressed(tiny())
    save(result, byte_tokenizer(), tmp_path / "model")
    result.lm_head.weight.mul_(1.01)
    with pytest.raises(LorapError, match="logits differ by"):
        check_reload(result, tmp_path / "model", IDS)


def test_a_plan_of_other_shapes_is_refused(tiny: Tiny) -> None:
    model = tiny()
    _, plan = compressed(model)
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key"):
        rebuilt(tiny(), plan)


def test_a_folder_without_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(LorapError, match=r"holds config\.json"):
        lorap_exp.load(tmp_path)


def prune_only(model: PreTrainedModel) -> PreTrainedModel:
    return rebuilt(model, compress(model, Stack(LORAP.steps[1:]), 0.3, IDS))


def test_uniform_widths_become_a_stock_architecture(
    tiny: Tiny, family: str, tmp_path: Path
) -> None:
    model = tiny(family)
    result = prune_only(model)
    expected = result(IDS).logits
    stock = export(result, model.config, "factored")
    torch.testing.assert_close(stock(IDS).logits, expected)
    assert stock.config.model_type == family
    save(stock, byte_tokenizer(), tmp_path / "model")
    assert not list((tmp_path / "model").glob("*.py"))
    assert torch.equal(lorap_exp.load(tmp_path / "model")(IDS).logits, stock(IDS).logits)


def test_dense_export_multiplies_the_factors_out(tiny: Tiny, family: str, tmp_path: Path) -> None:
    model = tiny(family)
    result, _ = compressed(model)
    logits = result(IDS).logits
    dense = export(result, model.config, "dense")
    assert not any(isinstance(module, LowRankLinear) for module in dense.modules())
    torch.testing.assert_close(dense(IDS).logits, logits, atol=1e-4, rtol=1e-4)
    assert dense.config.model_type == family
    save(dense, byte_tokenizer(), tmp_path / "model")
    assert torch.equal(lorap_exp.load(tmp_path / "model")(IDS).logits, dense(IDS).logits)


def test_batched_left_padding_and_a_second_save(tiny: Tiny, family: str, tmp_path: Path) -> None:
    result, _ = compressed(tiny(family))
    save(result, byte_tokenizer(), tmp_path / "first")
    lorap_exp.load(tmp_path / "first").save_pretrained(tmp_path / "second")
    model = lorap_exp.load(tmp_path / "second")
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    alone = model.generate(IDS[:1, :9], attention_mask=torch.ones(1, 9).long(), **options)
    padded = torch.zeros(2, 16).long()
    padded[0, 7:], padded[1] = IDS[0, :9], IDS[1]
    mask = (torch.arange(16) >= torch.tensor([[7], [0]])).long()
    together = model.generate(padded, attention_mask=mask, **options)
    assert torch.equal(together[0, 16:], alone[0, 9:])


def test_info_tells_what_was_done(tiny: Tiny, tmp_path: Path) -> None:
    dense = tiny()
    result, plan = compressed(tiny())
    save(result, byte_tokenizer(), tmp_path / "model")
    text = describe(tmp_path / "model")
    block = plan.shape(shape_of(dense)).by_index[1]
    assert f"r{block.matrices['q'].rank}" in text
    assert f"o{block.size('ffn')}" in text
    total = sum(parameter.numel() for parameter in result.parameters())
    assert f"{total:,}" in text and f"{4 * total:,}" in text
    counts = count_parameters(result)
    row = next(line for line in text.splitlines() if line.startswith("attention"))
    assert row.split()[1:] == [f"{counts['attention']:,}", f"{4 * counts['attention']:,}"]
    with pytest.raises(LorapError, match="holds config.json"):
        describe(tmp_path / "nowhere")
    assert describe(tmp_path) == text


def test_pruned_heads_become_a_stock_architecture(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny(heads=8, kv_heads=4)
    pruned = Stack((("attention", HeadPruning("published")), *LORAP.steps[1:]))
    plan = compress(model, pruned, 0.5, IDS)
    stock = export(rebuilt(model, plan), model.config, "factored")
    assert (stock.config.model_type, stock.config.num_key_value_heads) == ("llama", 2)
    torch.testing.assert_close(stock(IDS).logits, model(IDS).logits, rtol=0, atol=0)


def test_the_checked_model_can_still_be_trained(tiny: Tiny, tmp_path: Path) -> None:
    """The check moves the model between devices: its parameters must stay ordinary tensors."""
    result, _ = compressed(tiny())
    save(result, byte_tokenizer(), tmp_path / "model")
    check_reload(result, tmp_path / "model", IDS)
    result.lm_head.weight.requires_grad_(True)
    result(IDS).logits.sum().backward()
    assert result.lm_head.weight.grad is not None
    assert not any(parameter.is_inference() for parameter in result.parameters())


def test_sampling_settings_without_sampling_can_be_saved(tiny: Tiny, tmp_path: Path) -> None:
    dense = tiny()
    dense.save_pretrained(tmp_path / "dense")
    settings = {"temperature": 0.9, "top_p": 0.6}
    (tmp_path / "dense" / "generation_config.json").write_text(json.dumps(settings))
    model = ModelConfig(name="x", path=str(tmp_path / "dense"), revision=None, random=None)
    loaded = load_model(model, load_config(model), torch.device("cpu"), torch.float32, seed=0)
    save(compressed(loaded)[0], byte_tokenizer(), tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()
