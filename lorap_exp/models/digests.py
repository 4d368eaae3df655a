"""Digests of what a model is: its weights by content, its tokenizer by what it does."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lorap_exp.models.headers import weight_files
from lorap_exp.workspace.digests import digest_file, digest_json


def digest_weights(folder: Path) -> dict[str, str]:
    """The digest of every weight file of a model's folder, by name."""
    return {path.name: digest_file(path) for path in weight_files(folder)}


def digest_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Stands for everything that turns text into tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    return digest_json([type(tokenizer).__name__, rules, tokenizer.special_tokens_map])
