"""The tokenizer of a folder, and whether it belongs to a model: every token has its place in the
embedding."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from lorap_exp.errors import LorapError
from lorap_exp.models.families import family_of
from lorap_exp.models.headers import read_json

PROBE = "The quick brown fox jumps over the lazy dog."


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that a folder holds; no code of the folder runs.

    One that says its class needs no configuration of a model, of which the automatic class would
    warn where the model is a compressed one.
    """
    said = folder / "tokenizer_config.json"
    plain = said.is_file() and read_json(said).get("tokenizer_class") == "PreTrainedTokenizerFast"
    kind: Any = PreTrainedTokenizerFast if plain else AutoTokenizer
    options = {} if plain else {"trust_remote_code": False}
    found: PreTrainedTokenizerBase = kind.from_pretrained(str(folder), **options)
    return found


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, *, ends: bool
) -> None:
    """Raise unless every token that a plain text can have is one of the model's.

    Added tokens beyond the embedding (Gemma 3 has one for images) are no harm until a text names
    one, which `check_ids` looks for.

    Args:
        tokenizer: of the model.
        config: of the model.
        ends: what is asked for needs an end-of-text token (tasks, generation, instructions).
    """
    vocabulary = config.vocab_size
    added = set(tokenizer.added_tokens_decoder)
    largest = max(
        ((i, token) for token, i in tokenizer.get_vocab().items() if i not in added),
        default=(-1, ""),
    )
    if largest[0] < 0:
        raise LorapError("model.path: its tokenizer must have a vocabulary, got none")
    if largest[0] >= vocabulary:
        raise LorapError(
            f"model.path: its tokenizer must have tokens below the {vocabulary} of the embedding, "
            f"got {largest[1]!r} with {largest[0]}"
        )
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        index = getattr(tokenizer, f"{name}_id")
        if index is not None and not 0 <= index < vocabulary:
            raise LorapError(
                f"model.path: the {name} of its tokenizer must be below the {vocabulary} tokens "
                f"of the embedding, got {getattr(tokenizer, name)!r} with {index}"
            )
    if family_of(config).bos_every_chunk and tokenizer.bos_token_id is None:
        raise LorapError(
            f"model.path: the tokenizer of a '{config.model_type}' model must have a bos_token, "
            f"without which its scores mean nothing, got null"
        )
    if ends and tokenizer.eos_token_id is None:
        raise LorapError(
            "model.path: its tokenizer must have an eos_token for tasks, generation and "
            "instructions, got null; perplexity needs none"
        )
    ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    if not ids or set(ids) == {tokenizer.unk_token_id}:
        raise LorapError(
            f"model.path: its tokenizer must know the words of a text, got {len(ids)} tokens of "
            f"{PROBE!r}, none of them known"
        )


def check_ids(found: Mapping[str, Tensor | None], config: PreTrainedConfig) -> None:
    """Raise where a text to be read holds a token beyond the embedding; the keys name settings."""
    for setting, ids in found.items():
        if ids is not None and ids.numel() and int(ids.max()) >= config.vocab_size:
            raise LorapError(
                f"{setting}: tokens must be below the {config.vocab_size} of the model's "
                f"embedding, but the text holds {int(ids.max())}"
            )


def check_length(setting: str, length: int, config: PreTrainedConfig) -> None:
    """No sequence is longer than the model's positions."""
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and length > most:
        raise LorapError(
            f"{setting} must be at most {most}, the positions of the model, got {length}"
        )
