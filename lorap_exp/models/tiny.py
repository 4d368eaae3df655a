"""Random two-block models and a byte tokenizer, for tests and dry runs of a configuration."""

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerFast

from lorap_exp.config import RandomModelConfig


def random_config(random: RandomModelConfig) -> PreTrainedConfig:
    """A configuration of the family at the sizes asked for, with the bytes as vocabulary."""
    tokenizer = byte_tokenizer()
    settings = {
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
    if random.family == "opt":
        own = {"ffn_dim": random.intermediate_size, "word_embed_proj_dim": random.hidden_size}
        return AutoConfig.for_model("opt", **settings, **own)
    settings["intermediate_size"] = random.intermediate_size
    settings["num_key_value_heads"] = random.kv_heads
    if random.family != "phi3":
        settings["head_dim"] = random.hidden_size // random.heads
    if random.family == "gemma3_text":
        kinds = ["sliding_attention", "full_attention"]
        settings |= {
            "sliding_window": 16,
            "layer_types": [kinds[i % 2] for i in range(random.blocks)],
        }
    return AutoConfig.for_model(random.family, **settings)


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
