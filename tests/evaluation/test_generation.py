from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from lorap_exp import pipeline
from lorap_exp.config import Config
from lorap_exp.data.embedded import Embedded
from lorap_exp.errors import LorapError
from lorap_exp.evaluation.generation import evaluate_generation, passages, write_task
from lorap_exp.evaluation.profiles import PROFILES, read_text
from lorap_exp.models.tiny import byte_tokenizer

TEXT = read_text("wikitext2", PROFILES["lorap"], Embedded())


def test_passages_are_followed_by_their_word() -> None:
    rows = passages(TEXT, 20, 24)
    assert len(rows) == 20
    for row in rows:
        assert len(row["passage"].split()) == 24 and row["word"].isalpha()
        assert f"{row['passage'].split()[-1]} {row['word']}" in " ".join(TEXT.content.split())
    with pytest.raises(LorapError, match="evaluation.generation.words must leave"):
        passages(TEXT, 20, 100_000)


def test_only_the_right_word_counts(tmp_path: Path, tiny: Callable[..., PreTrainedModel]) -> None:
    """A model that always says one letter is right where that is the next word."""
    model = tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        letter = byte_tokenizer()("a")["input_ids"][0]
        model.get_input_embeddings().weight[:] = 1.0
        model.model.norm.weight[:] = 1.0
        model.lm_head.weight[letter] = 1.0
    rows = [
        {"passage": "one two", "word": "aaaaaaaa"},
        {"passage": "one two", "word": "AAAAAAAA"},
        {"passage": "one", "word": "bbb"},
    ]
    write_task(rows, tmp_path)
    score = evaluate_generation(model, byte_tokenizer(), "t", folder=tmp_path, batch_size=2)
    assert score.samples == 3
    assert score.accuracy == pytest.approx(2 / 3)


def test_a_job_with_everything(tmp_path: Path, config: Callable[..., Config]) -> None:
    """Stability and generation beside the tasks; the dense model answers once for all jobs."""
    settings = ["evaluation=streamline", "evaluation.generation.samples=4"]
    settings += ["evaluation.generation.words=12"]
    first = pipeline.run(config(*settings, "ratio=0.3"), tmp_path / "first")
    assert {one.task for one in first.scores.stability} == {t.task for t in first.scores.tasks}
    assert all(0 <= one.agreement <= 1 for one in first.scores.stability)
    assert first.scores.generation is not None and first.scores.generation.samples == 4
    assert "stability" in first.scores.means()
    assert (tmp_path / "first" / "choices" / "boolq.json").is_file()
    dense = pipeline.run(config(*settings, "method=dense"), tmp_path / "dense")
    assert dense.scores.stability == ()
    assert len(list((tmp_path / "store" / "choices").glob("*.bin"))) == 7
