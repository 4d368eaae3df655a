"""Random two-block models and a byte tokenizer, for tests and dry runs of a configuration."""

from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from lorap_exp.errors import LorapError
from lorap_exp.schema.inputs import RandomModelConfig

WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "moe_intermediate_size")
FIXED: dict[str, dict[str, Any]] = {
    "opt350": {"model_type": "opt", "do_layer_norm_before": False, "word_embed_proj_dim": 32},
    "falcon": {"new_decoder_architecture": True},
}
"""Settings of a family beside its sizes; `model_type` where it goes by a name of its own."""


def random_config(random: RandomModelConfig) -> PreTrainedConfig:
    """A configuration of the family at the sizes asked for, with the bytes as vocabulary.

    Raises:
        LorapError: transformers has no such family.
    """
    fixed = dict(FIXED.get(random.family, {}))
    kind = fixed.pop("model_type", random.family)
    if kind not in CONFIG_MAPPING:
        raise LorapError(
            f"model.random.family must be a model_type of transformers, got '{random.family}'"
        )
    usual = AutoConfig.for_model(kind)
    tokenizer = byte_tokenizer()
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": random.hidden_size,
        "num_hidden_layers": random.blocks,
        "num_attention_heads": random.heads,
        "max_position_embeddings": 4096,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    optional = dict.fromkeys(WIDTHS, random.intermediate_size)
    optional |= {"num_key_value_heads": random.kv_heads, "num_kv_heads": random.kv_heads}
    optional |= {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
    optional |= {"word_embed_proj_dim": random.hidden_size}
    optional |= {"head_dim": random.hidden_size // random.heads}
    known = usual.to_dict().keys() - {"head_dim"} | ({"head_dim"} & set(vars(usual)))
    settings |= {name: value for name, value in optional.items() if name in known}
    if "sliding_attention" in (getattr(usual, "layer_types", None) or ()):
        kinds = ["sliding_attention", "full_attention"]
        settings["layer_types"] = [kinds[i % 2] for i in range(random.blocks)]
        settings["sliding_window"] = 16
    return AutoConfig.for_model(kind, **settings | fixed)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, and an end-of-text token: reads any text, needs no file."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {char: i for i, char in enumerate(alphabet, start=1)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=end
    )
