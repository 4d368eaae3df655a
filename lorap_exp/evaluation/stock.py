"""lm-eval's model class, built on a model in memory without a word about it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from lm_eval.models import huggingface

EXPECTED = (
    "`pretrained` model kwarg is not of type `str`",
    "Passed an already-initialized model through `pretrained`",
)
"""What `HFLM` warns of when it is given a model instead of a name, which is meant here."""


@contextmanager
def model_given() -> Iterator[None]:
    """Inside, `HFLM` does not warn that it is given a model; it warns of everything else."""
    logger = logging.getLogger(huggingface.__name__)

    def unexpected(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(EXPECTED)

    logger.addFilter(unexpected)
    try:
        yield
    finally:
        logger.removeFilter(unexpected)
