import math
from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from lorap_exp.data.source import Text
from lorap_exp.errors import LorapError
from lorap_exp.evaluation import head
from lorap_exp.evaluation.head import score
from lorap_exp.evaluation.perplexity import chunk, evaluate_perplexity, mean_nll, tokenize
from lorap_exp.evaluation.profiles import PROFILES
from lorap_exp.models.source import Source
from lorap_exp.models.tiny import byte_tokenizer

TEXT = Text("wikitext2", "WikiText-2", "test", "the quick brown fox " * 40)


def test_the_tail_is_dropped() -> None:
    assert chunk(torch.arange(10), 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_mean_nll_equals_one_chunk_at_a_time(tiny: Callable[..., PreTrainedModel]) -> None:
    model, chunks = tiny(), torch.arange(7 * 16).view(7, 16) % 200
    slow = [cross_entropy(model(row[None]).logits[0, :-1], row[1:]).item() for row in chunks]
    for batch_size in (1, 3, 7):
        assert mean_nll(model, chunks, batch_size) == pytest.approx(sum(slow) / 7, rel=1e-5)


def test_logits_of_any_vocabulary_are_scored_in_float32() -> None:
    for vocabulary in (5, 300_000):
        logits, targets = torch.randn(6, vocabulary).bfloat16(), torch.randint(0, 5, (6,))
        expected = cross_entropy(logits.double(), targets, reduction="none").tolist()
        found, matches = score(logits, targets)
        assert (-found).tolist() == pytest.approx(expected, rel=1e-6)
        assert torch.equal(matches, logits.argmax(-1) == targets)


@pytest.mark.parametrize("length", [16, 600])
def test_sliced_logits_are_those_of_the_model(
    tiny: Callable[..., PreTrainedModel],
    family: str,
    length: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every family, with slices of a few rows and batches of one long chunk."""
    monkeypatch.setattr(head, "SLICE", {"cpu": 257 * 7, "cuda": 0})
    model, chunks = tiny(family), torch.randint(0, 257, (3, length))
    logits = model(chunks).logits[:, :-1].flatten(0, 1)
    expected = cross_entropy(logits, chunks[:, 1:].flatten()).item()
    assert mean_nll(model, chunks, 2) == pytest.approx(expected, rel=1e-5)


def test_uniform_predictions_have_the_vocabulary_as_perplexity(
    tiny: Callable[..., PreTrainedModel],
) -> None:
    model = tiny()
    model.lm_head.weight.zero_()
    chunks = tokenize(TEXT, byte_tokenizer(), 128, None)
    score = evaluate_perplexity(
        Source(model), chunks, text=TEXT, profile=PROFILES["lorap"], batch_size=2
    )
    assert score.perplexity == pytest.approx(257)
    assert score.tokens == 6 * 127
    assert (score.profile, score.split, score.sha256) == ("lorap", "test", TEXT.sha256)


def test_a_non_finite_loss_names_its_chunks(tiny: Callable[..., PreTrainedModel]) -> None:
    model = tiny()
    model.get_input_embeddings().weight.data[7] = math.nan
    chunks = torch.zeros(6, 8, dtype=torch.long)
    chunks[5, 3] = 7
    with pytest.raises(LorapError, match="loss of chunks 4 to 5 is not finite"):
        mean_nll(model, chunks, 2)


def test_bos_begins_every_chunk_and_is_never_scored() -> None:
    chunks = tokenize(TEXT, byte_tokenizer(), 128, None, bos=0)
    assert chunks.shape == (800 // 127, 128)
    assert chunks[:, 0].tolist() == [0] * 6
    plain = tokenize(TEXT, byte_tokenizer(), 127, None)
    assert torch.equal(chunks[:, 1:], plain)


def test_a_text_shorter_than_a_chunk_is_named() -> None:
    with pytest.raises(
        LorapError, match="at least one chunk of 2048 tokens of WikiText-2, got 800"
    ):
        tokenize(TEXT, byte_tokenizer(), 2048, None)
