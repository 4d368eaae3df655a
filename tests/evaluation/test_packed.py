import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

from lorap_exp.evaluation import packed as packed_module
from lorap_exp.evaluation.head import Head
from lorap_exp.evaluation.packed import Packed
from lorap_exp.evaluation.rows import Row, Scored, batch_rows, fill_rows, stack
from lorap_exp.models.tiny import byte_tokenizer

Model = Callable[..., PreTrainedModel]
QUESTIONS = [
    ("Which is red?", [" blood", " the sea, mostly", " snow"]),
    ("Which is red? Think of it at length, and of what would be said by others.", [" a", " b"]),
    ("The cup did not fit because the box was too", [" small", " small", " large"]),
    ("x " * 180, [" yes", " no"]),
    ("", ["no context at all"]),
]


def requests() -> list[Instance]:
    pairs = [(context, choice) for context, choices in QUESTIONS for choice in choices]
    return [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in pairs]


def stock(model: PreTrainedModel, asked: list[Instance]) -> list[tuple[float, bool]]:
    judged = HFLM(
        pretrained=model, tokenizer=byte_tokenizer(), batch_size=1, softmax_dtype="float32"
    )
    return judged.loglikelihood(asked, disable_tqdm=True)


def packed(model: PreTrainedModel, asked: list[Instance], **options: Any) -> list[Any]:
    judged = Packed(model, byte_tokenizer(), batch_size=2, **options)
    found = judged.loglikelihood(asked, disable_tqdm=True)
    assert judged.form == options.get("form", "auto")
    return found


@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("tokens", [None, 64])
def test_likelihoods_are_those_of_hflm(
    tiny: Model, family: str, window: int | None, tokens: int | None
) -> None:
    model = tiny(family)
    if window is not None:
        if not hasattr(model.config, "sliding_window") or family.startswith("qwen"):
            pytest.skip(f"{family} as configured here attends to everything")
        model.config.sliding_window = window
    expected = stock(model, requests())
    for one, other in zip(packed(model, requests(), tokens=tokens), expected, strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-4)
        assert one[1] == other[1]


def test_a_question_has_the_same_answer_alone_or_beside_others(tiny: Model) -> None:
    model, asked = tiny(), requests()
    together = packed(model, asked, form="packed")
    for at, one in enumerate(asked):
        (alone,) = packed(model, [one], form="packed")
        assert alone[0] == pytest.approx(together[at][0], abs=2e-5)


def test_greedy_answers_are_matches(tiny: Model) -> None:
    """Of the likeliest continuation of one letter, and of all others."""
    model, tokenizer = tiny(), byte_tokenizer()
    likeliest = model(torch.tensor([tokenizer("one two")["input_ids"]])).logits[0, -1].argmax()
    ids = [int(likeliest), int(likeliest) ^ 1]
    judged = Packed(model, tokenizer, batch_size=1, form="packed")
    context = tokenizer("one two")["input_ids"]
    found = judged._loglikelihood_tokens([(("", ""), context, [i]) for i in ids])
    assert [greedy for _, greedy in found] == [True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_ignores_masks_is_scored_by_stock_lm_eval(
    tiny: Model, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny()
    model.to(dtype=dtype)  # type: ignore[call-arg]
    model.get_output_embeddings().weight.mul_(30)

    def forget(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return args, kwargs | {"attention_mask": None, "position_ids": None}

    model.get_decoder().register_forward_pre_hook(forget, with_kwargs=True)
    judged = Packed(model, byte_tokenizer(), batch_size=1)
    found = judged.loglikelihood(requests(), disable_tqdm=True)
    assert judged.form == "stock"
    assert "are not packed for this model (likelihoods differ" in capsys.readouterr().err
    assert found == stock(model, requests())


def test_layers_of_an_unknown_kind_are_scored_by_stock_lm_eval(
    tiny: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny()
    model.config.attention_chunk_size = 8
    model.config.layer_types = ["chunked_attention"] * 2
    judged = Packed(model, byte_tokenizer(), batch_size=1)
    judged.loglikelihood(requests(), disable_tqdm=True)
    assert judged.form == "stock"
    assert "NotImplementedError: layers of kind chunked_attention" in capsys.readouterr().err


def test_the_mask_is_that_of_every_sequence_on_its_own() -> None:
    """Seen tokens and positions of random trees: each token sees its own sequence before it."""
    draw = random.Random(0)
    sequences = []
    for index in range(60):
        length = draw.randint(1, 12)
        tokens = tuple(draw.choice((1, 1, 1, 2)) for _ in range(length))
        sequences.append(Scored(index, tokens, (5,) * draw.randint(1, length)))
    rows = fill_rows(sequences, 32)
    places = sum(len(row.tokens) for row in rows)
    assert places < 0.6 * sum(len(s.tokens) for s in sequences)
    seen_before = set()
    for group in batch_rows(rows, 64):
        batch = stack(group)
        mask = batch.mask(None)[:, 0]
        for number, row in enumerate(group):
            for sequence, inside in row.predictors:
                seen_before.add(sequence.index)
                last = inside[-1]
                seen = mask[number, last].nonzero().flatten()
                assert batch.ids[number, seen].tolist() == list(sequence.tokens)
                assert batch.positions[number, seen].tolist() == list(range(len(sequence.tokens)))
                assert seen[-len(inside) :].tolist() == inside
        assert mask.any(-1).all()
        near = batch.mask(3)[:, 0].sum(-1)
        assert near.max() <= 3 and torch.equal(near, mask.sum(-1).clamp(max=3))
    assert seen_before == set(range(60))


def test_the_same_tokens_stand_in_a_row_once() -> None:
    row = Row()
    row.add([Scored(0, (1, 2, 3), (4,)), Scored(1, (1, 2, 3), (5,)), Scored(2, (1, 2, 9), (4,))])
    assert row.tokens == [1, 2, 3, 9]
    assert [inside for _, inside in row.predictors] == [[2], [2], [3]]


def test_a_head_that_cannot_be_read_off_the_configuration(
    tiny: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model's own logits are used, and said to be."""
    model, asked = tiny(), requests()

    def triple(module: Any, args: Any, output: Any) -> Any:
        output.logits = output.logits * 3
        return output

    model.register_forward_hook(triple)
    assert not Head(model).sliced
    assert "not sliced" in capsys.readouterr().err
    for one, other in zip(packed(model, asked), stock(model, asked), strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-4)


@pytest.mark.parametrize(("noise", "form"), [(0.06, "auto"), (0.03, "stock")])
def test_rounding_is_measured_by_stock_itself(
    tiny: Model, monkeypatch: pytest.MonkeyPatch, noise: float, form: str
) -> None:
    """0.1 nats a token pass where two batch sizes of stock lm-eval differ by more than half."""
    found = iter([0.1, noise])

    def apart(some: Any, others: Any) -> float:
        assert len(some) == len(others)
        return next(found) * 1000

    monkeypatch.setattr(packed_module, "_apart", apart)
    monkeypatch.setattr(packed_module, "TOLERANCE", {torch.float32: 0.0})
    judged = Packed(tiny(), byte_tokenizer(), batch_size=1)
    judged.loglikelihood(requests(), disable_tqdm=True)
    assert judged.form == form


@pytest.mark.parametrize(("room", "form"), [(2**40, "auto"), (0, "stock")])
def test_a_model_of_16_bits_is_compared_in_float32_where_there_is_room(
    tiny: Model, monkeypatch: pytest.MonkeyPatch, room: int, form: str
) -> None:
    """Rounding to bfloat16 is no difference between the forms."""
    nothing = {torch.float32: 1e-3, torch.bfloat16: 0.0}
    monkeypatch.setattr(packed_module, "TOLERANCE", nothing)
    monkeypatch.setattr(packed_module, "free_memory", lambda _: room)
    model = tiny().bfloat16()
    judged = Packed(model, byte_tokenizer(), batch_size=1)

    def rounded(asked: Any, *_: Any, **__: Any) -> Any:
        return [(nats - 0.05, greedy) for nats, greedy in judged._packed(asked)]

    monkeypatch.setattr(judged, "_stock", rounded)
    judged.loglikelihood(requests(), disable_tqdm=True)
    assert judged.form == form
    assert model.dtype == torch.bfloat16
