import logging
from collections.abc import Callable

import pytest
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

from lorap_exp.evaluation.packed import Packed
from lorap_exp.evaluation.stock import model_given
from lorap_exp.models.tiny import byte_tokenizer

LOGGER = "lm_eval.models.huggingface"


def test_what_is_meant_is_not_warned_of(
    tiny: Callable[..., PreTrainedModel], caplog: pytest.LogCaptureFixture
) -> None:
    """A model in memory is what is meant here; lm-eval's other warnings, and later ones, stay."""
    caplog.set_level(logging.WARNING, LOGGER)
    Packed(tiny(), byte_tokenizer(), batch_size=2)
    assert not caplog.records
    with model_given():
        logging.getLogger(LOGGER).warning("something else")
    assert caplog.messages == ["something else"]
    caplog.clear()
    HFLM(pretrained=tiny(), tokenizer=byte_tokenizer(), batch_size=2)
    assert len(caplog.messages) == 2
