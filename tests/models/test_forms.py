"""Every form that a projection or a layer can take: computed, saved, exported, copied."""

import copy
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import lorap_exp
from lorap_exp.errors import LorapError
from lorap_exp.models.checkpoint import check_reload, save
from lorap_exp.models.counting import count_parameters
from lorap_exp.models.families import blocks_of, decoder_family
from lorap_exp.models.forms import as_compressed, compressed_config, export, multiply_out
from lorap_exp.models.modeling_compressed import (
    MANY,
    LowRankLinear,
    PivotedLinear,
    Projection,
    place,
    projections,
    reshape_linear,
)
from lorap_exp.models.stock import stock_settings
from lorap_exp.models.tiny import byte_tokenizer
from tests.models.compressing import IDS, fill, rewrite

Tiny = Callable[..., PreTrainedModel]
FORMS: list[dict[str, Any]] = [
    {"rank": 5},
    {"rank": 5, "form": "pivoted"},
    {"scatter": 24},
    {"gather": 40},
    {"scatter": 24, "gather": 40},
    {"rank": 5, "scatter": 24, "gather": 40},
    {"rank": 5, "form": "pivoted", "scatter": 24},
]


def shuffle(projection: Any) -> None:
    """Random indices in place of the first ones."""
    sizes = {"kept": projection.out_features, "read": projection.in_features}
    for name, size in sizes.items():
        index: Any = getattr(projection, name)
        if index is not None:
            index.copy_(torch.randperm(size)[: index.numel()].sort().values)
    if isinstance(projection, PivotedLinear):
        projection.order.copy_(torch.randperm(projection.order.numel()))


def projection_of(form: dict[str, Any], bias: bool) -> Any:
    torch.manual_seed(0)
    projection = fill(reshape_linear(nn.Linear(48, 32, bias=bias), **form))
    shuffle(projection)
    return projection


def with_form(
    model: PreTrainedModel, form: dict[str, Any], names: Sequence[str] = "qv"
) -> dict[str, Any]:
    """Give some projections a form, in place; the settings that say so."""
    family, modules = decoder_family(model), {}
    for block in blocks_of(model):
        for name in names:
            found = fill(reshape_linear(block.linear(name), **form))
            if isinstance(found, Projection):
                shuffle(found)
            block.replace(name, found)
            modules[family.path(block.index, name)] = form
    return {"compressed_modules": modules}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_form_is_the_linear_map_of_its_weight(form: dict[str, Any], bias: bool) -> None:
    projection = projection_of(form, bias)
    x = torch.randn(3, 7, 48)
    expected = nn.functional.linear(x, projection.weight, projection.bias)
    torch.testing.assert_close(projection(x), expected)
    torch.testing.assert_close(multiply_out(projection)(x), expected)
    assert projection.weight.shape == (32, 48)
    assert (projection.bias is not None) == bias


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_many_tokens_take_another_way_to_the_same(form: dict[str, Any], bias: bool) -> None:
    """Weights are put in order in place of features; gradients are the same too."""
    projection = projection_of(form, bias)
    weights = list(projection.requires_grad_(True).parameters())
    x, target = torch.randn(2, MANY, 48), torch.randn(2, MANY, 32)
    at_once = projection(x)
    in_pieces = torch.cat([projection(part) for part in x.split(8, dim=1)], dim=1)
    torch.testing.assert_close(at_once, in_pieces)
    found, expected = (
        torch.autograd.grad((y * target).sum(), weights) for y in (at_once, in_pieces)
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_hangs_on_a_part_counts_for_many_tokens_too(form: dict[str, Any]) -> None:
    """Adapters and hooks would be passed by where weights are used by themselves."""
    projection = projection_of(form, bias=False)
    x = torch.randn(2, MANY, 48)
    before, seen = projection(x), []
    for part in projection.parts():
        part.register_forward_hook(lambda module, given, output: seen.append(module))
    torch.testing.assert_close(projection(x), before)
    assert seen == list(projection.parts())


def test_a_pivoted_projection_stores_its_rows_once() -> None:
    projection = reshape_linear(nn.Linear(48, 32, bias=False), rank=5, form="pivoted")
    assert sum(p.numel() for p in projection.parameters()) == 5 * (48 + 32 - 5)
    fill(projection)
    shuffle(projection)
    rows = projection.weight[projection.order[:5]]
    torch.testing.assert_close(rows, projection.right.weight)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gpt_neox", "opt"])
def test_every_form_survives(tiny: Tiny, family: str, form: dict[str, Any], tmp_path: Path) -> None:
    model = tiny(family)
    config = model.config
    result = as_compressed(model, with_form(model, form), config)
    expected = result(IDS).logits
    assert torch.equal(model(IDS).logits, expected)
    save(result, byte_tokenizer(), tmp_path / "model")
    check_reload(result, tmp_path / "model", IDS)
    dense = export(result, config, "dense")
    torch.testing.assert_close(dense(IDS).logits, expected, atol=1e-5, rtol=1e-4)
    assert dense.config.model_type == config.model_type


@pytest.mark.parametrize("name", ["o", "down"])
@pytest.mark.parametrize("family", ["llama", "granite"])
def test_biases_where_there_were_none_become_stock_ones(
    tiny: Tiny, family: str, name: str, tmp_path: Path
) -> None:
    model = tiny(family)
    config = model.config
    result = as_compressed(model, with_form(model, {"bias": True}, [name]), config)
    field = "attention_bias" if name == "o" else "mlp_bias"
    assert stock_settings(result.config) == {field: True}
    expected = result(IDS).logits
    stock = export(result, config, "factored")
    assert stock.config.model_type == family
    torch.testing.assert_close(stock(IDS).logits, expected)
    save(stock, byte_tokenizer(), tmp_path / "model")
    assert torch.equal(lorap_exp.load(tmp_path / "model")(IDS).logits, stock(IDS).logits)


def test_biases_without_a_setting_are_kept(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny("mistral")
    config = model.config
    result = as_compressed(model, with_form(model, {"bias": True}, ["down"]), config)
    assert stock_settings(result.config) == "MistralConfig has no setting for biases in its mlp"
    save(result, byte_tokenizer(), tmp_path / "model")
    check_reload(result, tmp_path / "model", IDS)


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gpt2", "opt", "bloom", "falcon"])
def test_shortcuts_that_are_the_identity_change_nothing(
    tiny: Tiny, family: str, tmp_path: Path
) -> None:
    model = tiny(family)
    config, expected = model.config, model(IDS).logits
    if decoder_family(model).residual != "sequential":
        with pytest.raises(
            LorapError, match="as they are, one after the other, got '(falcon|bloom)'"
        ):
            blocks_of(model)[0].add_shortcuts()
        with pytest.raises(LorapError, match="shortcuts need"):
            compressed_config(config, {"shortcuts": True})
        return
    settings = rewrite(model) if family == "opt" else {}
    expected, stripped = model(IDS).logits, copy.deepcopy(model)
    for block in blocks_of(model):
        block.add_shortcuts()
        for name in ("shortcut_attention", "shortcut_mlp"):
            nn.init.eye_(block.module.get_parameter(f"{name}.weight"))
    torch.testing.assert_close(model(IDS).logits, expected)
    for block in blocks_of(model):
        fill(block.module.get_submodule("shortcut_mlp"))
    result = as_compressed(model, settings | {"shortcuts": True}, config)
    assert torch.equal(result(IDS).logits, model(IDS).logits)
    assert not torch.allclose(result(IDS).logits, expected)
    save(result, byte_tokenizer(), tmp_path / "model")
    check_reload(result, tmp_path / "model", IDS)
    options = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    cached = result.generate(IDS, use_cache=True, **options)
    assert torch.equal(cached, result.generate(IDS, use_cache=False, **options))
    assert stock_settings(result.config) == "its layers map the residual by shortcuts"
    counted, without = count_parameters(result), count_parameters(stripped)
    for part in ("attention", "mlp"):
        assert counted[part] == without[part] + 2 * 64 * 64


def test_a_narrower_residual_stream(tiny: Tiny, tmp_path: Path) -> None:
    """As SliceGPT leaves a model: `stock` says the size, head_dim stays."""
    narrow = tiny(hidden_size=48)
    wide = tiny(hidden_size=64)
    settings = {"stock": {"hidden_size": 48, "head_dim": 12}, "shortcuts": True}
    for block in blocks_of(narrow):
        block.add_shortcuts()
    result = as_compressed(narrow, settings, wide.config)
    assert result.config.hidden_size == 48
    assert torch.equal(result(IDS).logits, narrow(IDS).logits)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox", "bloom", "gemma2", "opt"])
def test_branches(tiny: Tiny, family: str, tmp_path: Path) -> None:
    model = tiny(family)
    config, before = model.config, model(IDS).logits
    block = blocks_of(model)[1]
    if family == "opt":
        with pytest.raises(LorapError, match="branches need an MLP .* got 'opt'"):
            block.add_branch(3)
        return
    paths = {name for name, _ in model.named_parameters()}
    block.add_branch(3)
    assert paths < {name for name, _ in model.named_parameters()}
    assert block.family.mlp is not None
    branch: Any = block.module.get_submodule(f"{block.family.mlp}.branch")
    nn.init.zeros_(branch.left.weight)
    assert torch.equal(model(IDS).logits, before)
    fill(branch)
    result = as_compressed(model, {"branches": {"1": 3}}, config)
    assert torch.equal(result(IDS).logits, model(IDS).logits)
    assert not torch.allclose(result(IDS).logits, before)
    save(result, byte_tokenizer(), tmp_path / "model")
    check_reload(result, tmp_path / "model", IDS)
    assert stock_settings(result.config) == "1 of its MLPs have a branch"
    hidden = 64
    assert count_parameters(result)["mlp"] == count_parameters(tiny(family))["mlp"] + 6 * hidden


def test_projections_can_change_again(tiny: Tiny) -> None:
    """From factors to a matrix and back, whatever else its owner holds."""
    model = tiny()
    stock = type(blocks_of(model)[0].module.self_attn)
    rewrite(model)
    path = "model.layers.0.self_attn"
    attention = model.get_submodule(path)
    assert type(attention) is not stock and issubclass(type(attention), stock)
    logits = model(IDS).logits
    for at, projection in projections(model).items():
        place(model, at, multiply_out(projection))
    assert type(attention) is stock and not projections(model)
    assert {"left", "right"}.isdisjoint(dict(model.get_submodule(path).named_children()))
    torch.testing.assert_close(model(IDS).logits, logits)


def test_layers_changed_in_different_ways_are_of_different_classes(tiny: Tiny) -> None:
    """Engines fuse q, k and v once for a class."""
    model = tiny(blocks=3)
    form = {"rank": 4}
    for index, names in ((1, "qv"), (2, "qkvo")):
        for name in names:
            block = blocks_of(model)[index]
            block.replace(name, fill(reshape_linear(block.linear(name), **form)))
    kinds = [type(block.module.self_attn) for block in blocks_of(model)]
    assert len(set(kinds)) == 3
    assert len({type(block.module.mlp) for block in blocks_of(model)}) == 1


@pytest.mark.parametrize("family", ["llama", "phi3", "opt"])
def test_copies_and_pickles(tiny: Tiny, family: str) -> None:
    model = tiny(family)
    config = model.config
    result = as_compressed(model, rewrite(model), config)
    expected = result(IDS).logits
    twin = copy.deepcopy(result)
    for parameter in twin.parameters():
        parameter.mul_(0)
    assert torch.equal(result(IDS).logits, expected)
    again = pickle.loads(pickle.dumps(result))
    assert torch.equal(again(IDS).logits, expected)
    first = next(iter(projections(again).values()))
    assert isinstance(first, LowRankLinear)
    assert first.left.weight.data_ptr() in {p.data_ptr() for p in again.parameters()}


def test_a_compressed_model_compiles_in_one_graph(tiny: Tiny) -> None:
    model = tiny()
    config = model.config
    result = as_compressed(model, rewrite(model), config)
    expected = result(IDS, use_cache=False).logits
    compiled = torch.compile(result, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(IDS, use_cache=False).logits, expected)


def test_unknown_settings_are_named(tiny: Tiny) -> None:
    with pytest.raises(LorapError, match=r"settings must be some of .* got \['ranks'\]"):
        compressed_config(tiny().config, {"ranks": 3})
