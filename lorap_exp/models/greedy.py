"""Greedy generation that depends on the weights and on nothing that a model's files suggest."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig, PreTrainedModel


def end_tokens(model: PreTrainedModel) -> list[int]:
    """Tokens at which generation ends, from the model's generation settings."""
    end = getattr(model.generation_config, "eos_token_id", None)
    return [end] if isinstance(end, int) else list(end or [])


@contextmanager
def greedy(model: PreTrainedModel) -> Iterator[Any]:
    """Within the block, `generate` takes the likeliest token: no sampling, penalty or beam.

    Of the model's own generation settings only the special tokens stay.
    """
    own = model.generation_config
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    tokens = {name: getattr(own, name, None) for name in names}
    model.generation_config = GenerationConfig(do_sample=False, num_beams=1, **tokens)
    try:
        yield model
    finally:
        model.generation_config = own
