"""Projections that read the same input: one first product, and nothing else is different."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorap_exp.models.checkpoint import as_compressed, load, save
from lorap_exp.models.families import blocks_of
from lorap_exp.models.modeling_compressed import changed_in, reshape_linear
from lorap_exp.models.tiny import byte_tokenizer
from tests.models.compressing import IDS, fill, rewrite

Tiny = Callable[..., PreTrainedModel]
SEPARATE = 2 * (7 + 4) + 1
"""Products of two blocks of seven projections, four of them factored, and a head."""
FORMS: dict[str, dict[str, dict[str, Any]]] = {
    "pairs": {"q": {"rank": 6}, "k": {"rank": 5}, "v": {"rank": 7}},
    "pivoted": {"q": {"rank": 6, "form": "pivoted"}, "k": {"rank": 5}, "v": {"scatter": 24}},
    "narrow": {"v": {"scatter": 24}, "k": {"rank": 5}},
    "gate": {"gate": {"rank": 9}, "up": {"rank": 8}},
}


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], int]:
    """How many products a call makes."""
    calls: list[None] = []
    real = nn.functional.linear

    def counted(*arguments: Any) -> Tensor:
        calls.append(None)
        return real(*arguments)

    monkeypatch.setattr(nn.functional, "linear", counted)

    def products(model: Any) -> int:
        calls.clear()
        model(IDS)
        return len(calls)

    return products


@pytest.fixture(autouse=True)
def inference() -> Any:
    with torch.no_grad():
        yield


def compressed(model: PreTrainedModel) -> PreTrainedModel:
    config = model.config
    return as_compressed(model, rewrite(model), config)


def separately(model: PreTrainedModel) -> Tensor:
    with torch.enable_grad():
        logits: Tensor = model(IDS).logits
    return logits.detach()


@pytest.mark.parametrize("form", FORMS)
def test_the_output_is_that_of_separate_products(
    tiny: Tiny, form: str, count: Callable[[Any], int]
) -> None:
    model = tiny()
    for block in blocks_of(model):
        for name, settings in FORMS[form].items():
            block.replace(name, fill(reshape_linear(block.linear(name), **settings)))
    expected = separately(model)
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-6, rtol=1e-6)
    one = {"pairs": 17, "pivoted": 15, "narrow": 15, "gate": 17}[form]
    assert count(model) == one
    with torch.enable_grad():
        assert count(model) == one + 2 * (len(FORMS[form]) - 1)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox", "opt", "qwen3"])
def test_what_is_generated_is_the_same(
    tiny: Tiny, family: str, monkeypatch: pytest.MonkeyPatch, count: Callable[[Any], int]
) -> None:
    model = compressed(tiny(family))
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    expected, products = model.generate(IDS, **options), count(model)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(model.generate(IDS, **options), expected)
    assert count(model) == products + 2 * 2


def test_files_are_the_same_afterwards(
    tiny: Tiny, tmp_path: Path, count: Callable[[Any], int]
) -> None:
    model = compressed(tiny())
    save(model, byte_tokenizer(), tmp_path / "before")
    model.save_pretrained(tmp_path / "before" / "shards", max_shard_size="20KB")
    model(IDS)
    assert _held(model) < len(list(model.parameters()))
    save(model, byte_tokenizer(), tmp_path / "after")
    model.save_pretrained(tmp_path / "after" / "shards", max_shard_size="20KB")
    files = sorted((tmp_path / "before").rglob("*.safetensors"))
    assert len(files) > 3
    for file in files:
        other = tmp_path / "after" / file.relative_to(tmp_path / "before")
        assert file.read_bytes() == other.read_bytes()
    again = load(tmp_path / "after")
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert count(again) == SEPARATE - 4


def _held(model: nn.Module) -> int:
    """Tensors that parameters lie in."""
    return len({p.untyped_storage().data_ptr() for p in model.parameters()})


def test_weights_that_were_moved_lie_together_again(
    tiny: Tiny, count: Callable[[Any], int]
) -> None:
    model = compressed(tiny())
    apart, products = _held(model), count(model)
    together = apart - 2 * 2
    assert (products, _held(model)) == (SEPARATE - 4, together)
    for other in (copy.deepcopy(model), compressed(tiny()).double()):
        assert count(other) == SEPARATE - 4
        assert _held(other) == together
    state = {name: tensor * 2 for name, tensor in model.state_dict().items()}
    for assign in (False, True):
        model.load_state_dict(state, assign=assign)
        assert count(model) == SEPARATE - 4
        torch.testing.assert_close(model(IDS).logits, separately(model))


def _hooked(linear: Any) -> None:
    linear.register_forward_hook(lambda *_: None)


def _replaced(linear: Any) -> None:
    linear.forward = linear.forward


def _lent(linear: Any) -> None:
    linear.weight.data = torch.cat([linear.weight, linear.weight])[: len(linear.weight)]


@pytest.mark.parametrize("what", [_hooked, _replaced, _lent])
def test_a_layer_that_does_more_computes_itself(
    tiny: Tiny, what: Callable[[Any], None], count: Callable[[Any], int]
) -> None:
    model = compressed(tiny())
    what(model.get_submodule("model.layers.1.self_attn.right.k_proj"))
    expected = separately(model)
    assert count(model) == SEPARATE - 2
    torch.testing.assert_close(model(IDS).logits, expected)


def test_parts_belong_to_one_input(tiny: Tiny) -> None:
    """A projection called with another tensor, or twice, or alone."""
    model = compressed(tiny())
    q, k, v = list(changed_in(model.get_submodule("model.layers.0.self_attn")).values())[:3]
    one, other = torch.randn(2, 64), torch.randn(2, 64)
    for projection, x in ((q, one), (k, other), (q, one), (k, one), (k, one), (v, one), (v, other)):
        expected = nn.functional.linear(x, projection.weight)
        torch.testing.assert_close(projection(x), expected, atol=1e-6, rtol=1e-5)


def test_threads_have_their_own_inputs(tiny: Tiny) -> None:
    model = compressed(tiny())
    batches = [(IDS + 7 * number) % 257 for number in range(16)]
    expected = [separately(model)] + [model(ids).logits for ids in batches[1:]]

    @torch.inference_mode()
    def answer(ids: Tensor) -> Tensor:
        logits: Tensor = model(ids).logits
        return logits

    with ThreadPoolExecutor(4) as pool:
        for found, logits in zip(pool.map(answer, batches), expected, strict=True):
            torch.testing.assert_close(found, logits)


def test_it_can_be_trained_afterwards(tiny: Tiny) -> None:
    model = compressed(tiny())
    with torch.inference_mode():
        model(IDS)
    model.requires_grad_(True)
    with torch.enable_grad():
        model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    before = separately(model)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    after = separately(model)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(model(IDS).logits, after)
