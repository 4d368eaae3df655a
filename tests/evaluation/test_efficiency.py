from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from lorap_exp import pipeline
from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.evaluation import efficiency
from lorap_exp.evaluation.efficiency import (
    Decoder,
    Efficiency,
    compare,
    kv_bytes_per_token,
    macs_per_token,
    measure,
    weight_bytes,
)
from lorap_exp.reporting.table import cells
from lorap_exp.schema.evaluation import EfficiencyConfig

Model = Callable[..., PreTrainedModel]
ASKED = EfficiencyConfig(prompt=8, tokens=4, batches=(1, 2), repeats=2, compiled=False)


def test_sizes_are_counted_from_the_model(tiny: Model) -> None:
    """Two blocks of hidden 64, MLP 176, 4 heads and 2 key-value heads of 16, 257 tokens."""
    model = tiny("llama")
    block = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 176
    assert macs_per_token(model) == 2 * block + 257 * 64
    assert kv_bytes_per_token(model) == 2 * 2 * 2 * 16 * 4
    norms = 5 * 64
    found = weight_bytes(model)
    assert found == {
        "embeddings": 257 * 64 * 4,
        "head": 257 * 64 * 4,
        "decoder": 4 * (2 * block + norms),
    }
    model.lm_head.weight = model.model.embed_tokens.weight
    assert weight_bytes(model) == found | {"head": 0}


def test_a_model_is_as_fast_as_itself_and_rows_are_restored(tiny: Model, family: str) -> None:
    found = measure(tiny(family), tiny(family), ASKED)
    names = [speed.what for speed in found.speeds]
    assert names == ["prefill", "first token", "decode x1", "decode x2"]
    for speed in found.speeds:
        assert speed.ratio is not None and speed.low is not None and speed.high is not None
        assert 0 < speed.low <= speed.ratio <= speed.high
        assert speed.value > 0
    alone = measure(tiny(family), None, ASKED)
    assert [speed.ratio for speed in alone.speeds] == [None] * 4
    assert (
        Efficiency.restore(
            **{k: v for k, v in vars(alone).items() if k != "speeds"},
            speeds=[vars(s) for s in alone.speeds],
        )
        == alone
    )


def test_a_model_that_waits_is_slower(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios are of this model over the dense one: a clock of its own says 10 against 5."""
    own, dense = tiny(), tiny()
    rates = {id(own): 5.0, id(dense): 10.0}
    found = compare("decode x1", lambda model: rates[id(model)], own, dense, 3)
    assert (found.value, found.dense, found.ratio) == (5.0, 10.0, 0.5)
    first = compare(efficiency.FIRST, lambda model: rates[id(model)], own, dense, 3)
    assert (first.value, first.dense, first.ratio) == (0.2, 0.1, 0.5)


def test_decoding_is_greedy_with_a_cache(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    seen: list[torch.Tensor] = []
    real = Decoder._next

    def spy(*arguments: object) -> torch.Tensor:
        seen.append(real(*arguments))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(Decoder, "_next", staticmethod(spy))
    Decoder(2, 8, 5, False)(model)
    ids = efficiency.prompts(model, 2, 8)
    expected = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert torch.equal(torch.cat(seen, 1), expected[:, 8:])


def test_positions_are_checked(tiny: Model) -> None:
    long = ASKED.model_copy(update={"prompt": 5000})
    with pytest.raises(LorapError, match="efficiency.prompt and tokens must be at most 4096"):
        measure(tiny(), None, long)


def test_a_job_shows_what_was_gained(tmp_path: Path, config: Callable[..., Config]) -> None:
    asked = "{prompt: 8, tokens: 3, batches: [1], repeats: 2, compiled: false}"
    settings = ["evaluation.zero_shot=null", f"evaluation.efficiency={asked}"]
    result = pipeline.run(config(*settings, "ratio=0.5"), tmp_path)
    assert result.scores.efficiency is not None
    assert result.scores.efficiency.macs > 0
    assert {"speed x, prefill", "speed x, decode x1", "weights (MB)"} <= cells(result).keys()
    dense = pipeline.run(config(*settings, "method=dense"), tmp_path / "dense")
    assert dense.scores.efficiency is not None
    assert "speed x, prefill" not in cells(dense)
