from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from lorap_exp.calibration.sampling import (
    Draws,
    further_windows,
    read_documents,
    sample_windows,
)
from lorap_exp.config import Config
from lorap_exp.data.embedded import Embedded
from lorap_exp.errors import LorapError
from lorap_exp.models.tiny import byte_tokenizer

LONG = "".join(chr(97 + i % 26) for i in range(400))


def test_windows_are_substrings_of_long_documents() -> None:
    tokenizer = byte_tokenizer()
    ids = sample_windows([LONG, "short"], tokenizer, samples=5, length=40, seed=0)
    assert ids.shape == (5, 40)
    assert all(str(tokenizer.decode(row)) in LONG for row in ids)


def test_the_seed_decides() -> None:
    tokenizer = byte_tokenizer()
    draws = [
        sample_windows([LONG], tokenizer, samples=4, length=40, seed=seed) for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_bos_begins_every_window() -> None:
    ids = sample_windows([LONG], byte_tokenizer(), samples=4, length=40, seed=0, bos=0)
    assert ids.shape == (4, 40)
    assert ids[:, 0].tolist() == [0] * 4
    assert (ids[:, 1:] > 0).all()


@pytest.mark.parametrize("documents", [[LONG], [LONG, "a" * 39, "b" * 30], ["tiny"]])
def test_too_few_tokens_are_named(documents: list[str]) -> None:
    available = 400 if LONG in documents else 0
    with pytest.raises(LorapError, match=f"at most the {available} tokens .* got 11 x 40"):
        sample_windows(documents, byte_tokenizer(), samples=11, length=40, seed=0)


@pytest.mark.parametrize(("separator", "expected"), [("line", 3), ("blank_line", 2), ("file", 1)])
def test_local_files(
    tmp_path: Path, config: Callable[..., Config], separator: str, expected: int
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\nthree\n")
    cfg = config(
        "calibration=text", f"calibration.files=[{path}]", f"calibration.separator={separator}"
    )
    assert len(read_documents(cfg.calibration, Embedded())) == expected


def test_a_file_that_is_no_text_is_named(tmp_path: Path, config: Callable[..., Config]) -> None:
    (tmp_path / "a.bin").write_bytes(bytes([255, 254, 0, 200]))
    cfg = config("calibration=text", f"calibration.files=[{tmp_path / 'a.bin'}]")
    with pytest.raises(LorapError, match="calibration.files must be UTF-8 text"):
        read_documents(cfg.calibration, Embedded())


def test_a_missing_file_is_named(config: Callable[..., Config]) -> None:
    cfg = config("calibration=text", "calibration.files=[nowhere.txt]")
    with pytest.raises(LorapError, match=r"calibration.files .* got 'nowhere.txt'"):
        read_documents(cfg.calibration, Embedded())


def test_further_windows_share_no_token_with_the_calibration() -> None:
    tokenizer = byte_tokenizer()
    documents = ["".join(chr(32 + (7 * d + i * i) % 90) for i in range(300)) for d in range(3)]
    given: dict[str, Any] = {"length": 20, "seed": 3, "bos": None}
    own = sample_windows(documents, tokenizer, samples=8, **given)
    held = further_windows(documents, tokenizer, samples=8, held=9, setting="held", **given)
    assert held.shape == (9, 20)
    draws = list(islice(Draws(documents, tokenizer, **given), 300))
    assert [d.ids for d in draws[:8]] == own.tolist()
    places = [next(d for d in draws if d.ids == ids) for ids in (*own.tolist(), *held.tolist())]
    for number, place in enumerate(places[8:], start=8):
        for other in places[:number]:
            apart = abs(place.start - other.start) >= 20
            assert place.document != other.document or apart
    with pytest.raises(LorapError, match=r"held must be at most \d+, the windows that"):
        further_windows(documents, tokenizer, samples=8, held=40, setting="held", **given)
