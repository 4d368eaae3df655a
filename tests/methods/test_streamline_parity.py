"""Against the published LLM-Streamline code, and independent values where that is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from lorap_exp.methods.streamline.selection import measure_similarities, select
from lorap_exp.models.layout import shortened
from lorap_exp.models.source import Source
from lorap_exp.planning.edits import Drop


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    return shared / "golden" / "streamline"


@pytest.fixture(scope="module")
def model(golden: Path) -> PreTrainedModel:
    loaded: Any = AutoModelForCausalLM.from_pretrained(golden / "model", dtype=torch.float32)
    return loaded.eval().requires_grad_(False)


@pytest.mark.parametrize("length", [2, 3])
def test_scores_and_choice(golden: Path, model: PreTrainedModel, length: int) -> None:
    ids = load_file(golden / "tensors.safetensors")["calib_ids"].long()
    expected = json.loads((golden / "scores.json").read_text())["spans"][str(length)]
    found = select(
        Source(model), ids, length, criterion="cosine", protect=(0, 0), start=None, batch_size=4
    )
    scores = [score for _, score in found.scores]
    assert scores == pytest.approx(expected["corrected_raw_cos"], abs=1e-5)
    assert found.removed[0] == expected["corrected_argmax"]
    assert len(found.removed) == length
    published = expected["official_raw_cos"]
    assert scores[:-1] == pytest.approx(published[:-1], abs=1e-5)
    assert abs(scores[-1] - published[-1]) > 1e-2  # the public code reads the post-norm state


def test_streaming_in_rows_changes_nothing(golden: Path, model: PreTrainedModel) -> None:
    ids = load_file(golden / "tensors.safetensors")["calib_ids"].long()
    whole, halves = measure_similarities(model, ids), measure_similarities(model, ids[:6])
    rest = measure_similarities(model, ids[6:])
    for pair, value in whole.cosine.items():
        assert value == pytest.approx((halves.cosine[pair] + rest.cosine[pair]) / 2, abs=1e-6)


def test_dropping_layers_gives_the_published_logits(golden: Path, model: PreTrainedModel) -> None:
    tensors = load_file(golden / "tensors.safetensors")
    ids = tensors["held_ids"].long()
    torch.testing.assert_close(model(ids).logits, tensors["dense.logits"], rtol=1e-4, atol=1e-5)
    cases = [name for name in tensors if "_drop" in name]
    assert cases
    for name in cases:
        length, start = name.removesuffix(".logits").removeprefix("m").split("_drop")
        layers = tuple(range(int(start), int(start) + int(length)))
        logits = shortened(model, [Drop(layers)], {})(ids).logits
        assert (logits - tensors[name]).norm() / tensors[name].norm() < 1e-4
