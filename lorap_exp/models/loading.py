"""Loading a dense model: from the hub, a folder, or at random.

What a folder holds is inspected before any weight is read, and every tensor is accounted for: none
is filled at random, none is left over, none is not a number.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lorap_exp.errors import LorapError, one_line
from lorap_exp.models import checkpoint
from lorap_exp.models.digests import digest_weights
from lorap_exp.models.families import family_of, split_fused
from lorap_exp.models.headers import read_json, stored_tensors
from lorap_exp.models.inspection import (
    check_folder,
    check_layers,
    check_tokenizer_files,
    match_folder,
)
from lorap_exp.models.origin import Source, describe_source, find_source, with_weights
from lorap_exp.models.quantised import as_floats, forget, opening, quantisation_in
from lorap_exp.models.tiny import byte_tokenizer, random_config
from lorap_exp.models.tokenizers import open_tokenizer
from lorap_exp.schema.inputs import ModelConfig
from lorap_exp.workspace.digests import digest_json
from lorap_exp.workspace.memory import out_of_memory
from lorap_exp.workspace.progress import say

T = TypeVar("T")
TRIED = 16
"""Tokens on which a model is tried out."""


def load_config(model: ModelConfig) -> PreTrainedConfig:
    """The configuration of a causal decoder of a known family; of its text model where it has more.

    Of a saved compressed model it is the compressed one, which `check_dense` tells apart.

    Raises:
        LorapError: the model is none, or its folder does not hold exactly its tensors.
    """
    if model.random is not None:
        config = random_config(model.random)
        _architecture(config, f"a random '{model.random.family}'")
        return config
    source = find_source(model)
    raw = check_folder(source.folder)
    if _is_compressed(raw):
        config = _reading(source, lambda: checkpoint.load_config(source.folder))
        forget(config)
        match_folder(source.folder, _architecture(config, f"'{source.location}'"))
        return config
    whole = _reading(source, lambda: AutoConfig.from_pretrained(_at(source)))
    if whole.is_encoder_decoder:
        raise LorapError(
            f"model.path must hold a causal decoder model, got the encoder-decoder "
            f"'{whole.model_type}' in '{source.location}'"
        )
    config = text_config(whole, source.folder)
    forget(config)
    if getattr(config, "original_layers", None):
        config.original_layers = None  # numbers count from the model that is loaded
    empty = _architecture(config, f"'{source.location}'")
    family_of(config)
    if source.hub is None:
        match_folder(source.folder, empty)
    return config


def check_dense(model: ModelConfig, config: PreTrainedConfig) -> None:
    """Raise where a model that is to be compressed is no longer dense."""
    if model.random is None and _is_quantised(find_source(model)):
        raise LorapError(
            f"model.path must hold a dense model where method compresses it, got '{model.path}', "
            f"whose weights are quantised: method=dense scores it"
        )
    if getattr(config, "stock_class", None) is not None:
        raise LorapError(
            f"model.path must hold a dense model where method compresses it, got '{model.path}', "
            f"which was compressed to factors or unequal widths (model_type "
            f"'{config.model_type}'): method=dense scores it; one saved with export=dense and "
            f"equal widths can be compressed again"
        )


def text_config(whole: PreTrainedConfig, folder: Path) -> PreTrainedConfig:
    """The configuration of the text model; its head is tied as that of the whole, unless stored."""
    text = whole.get_text_config()
    if text is whole:
        return whole
    if not isinstance(text, PreTrainedConfig):
        raise LorapError(
            f"model.path: config.json of a '{whole.model_type}' must have no text_config, got "
            f"{str(text)[:60]!r} in '{folder}'"
        )
    text.tie_word_embeddings = whole.tie_word_embeddings and not _stores_head(folder)
    say(f"  the text model '{text.model_type}' of '{whole.model_type}' is taken")
    return text


def _stores_head(folder: Path) -> bool:
    """Whether a head lies in the weight files; of a hub model, whether its index says so."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = read_json(index).get("weight_map") or {}
    else:
        names = stored_tensors(folder) if list(folder.glob("*.safetensors")) else {}
    return any(name.endswith("lm_head.weight") for name in names)


def _is_quantised(source: Source) -> bool:
    return quantisation_in(read_json(source.folder / "config.json"), source.folder) is not None


def _is_compressed(raw: dict[str, Any]) -> bool:
    return str(raw.get("model_type")).startswith("compressed_")


def _at(source: Source) -> str:
    return str(source.folder)


def _architecture(config: PreTrainedConfig, what: str) -> PreTrainedModel:
    """The stock architecture without weights, of a configuration that makes sense."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise LorapError(
            f"model.path must hold a causal decoder model that transformers knows, got model_type "
            f"'{config.model_type}'"
        )
    heads, groups, layers = (
        getattr(config, name, None)
        for name in ("num_attention_heads", "num_key_value_heads", "num_hidden_layers")
    )
    if heads and groups and heads % groups:
        raise LorapError(
            f"model.path: num_attention_heads must be a multiple of num_key_value_heads "
            f"({groups}), got {heads} in {what}"
        )
    check_layers(layers, what)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever transformers makes of a wrong configuration
        raise LorapError(
            f"model.path: the configuration of {what} describes no model: "
            f"{_named(error, config)}{one_line(error)}"
        ) from error


def _named(error: Exception, config: PreTrainedConfig) -> str:
    """The setting whose value is what a KeyError names, in words."""
    if not isinstance(error, KeyError) or not error.args:
        return ""
    found = [key for key, value in config.to_dict().items() if value == error.args[0]]
    return f"{found[0]} is unknown: " if found else ""


def digest_model(model: ModelConfig, config: PreTrainedConfig, seed: int) -> str:
    """Stands for configuration and weights: the files' content, or the hub's commit."""
    settings = {k: v for k, v in config.to_dict().items() if k != "_name_or_path"}
    if model.random is not None:
        return digest_json([settings, model.random.model_dump(), seed])
    source = find_source(model)
    weights = source.commit if source.hub is not None else digest_weights(source.folder)
    return digest_json([settings, source.hub, weights])


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of the model, or bytes for a random one."""
    if model.random is not None:
        return byte_tokenizer()
    source = find_source(model)
    check_tokenizer_files(source.folder)
    return _reading(
        source,
        lambda: open_tokenizer(source.folder),
        "its tokenizer",
    )


def load_model(
    model: ModelConfig,
    config: PreTrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
) -> PreTrainedModel:
    """The dense model in evaluation mode, on `device`, its parameters frozen.

    Raises:
        LorapError: a tensor is missing, left over, of another size or not finite, or there is no
            memory for them.
    """
    what = f"'{describe_source(model)}'"
    try:
        if model.random is not None:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                dense = AutoModelForCausalLM.from_config(config, dtype=dtype)
        else:
            dense = _read_weights(model, config, dtype)
        check_finite(dense, what)
        try_out(dense, what)
        generation = dense.generation_config
        if generation is not None and {generation.temperature, generation.top_p} - {None, 1.0}:
            generation.do_sample = True  # settings of sampling without it cannot be saved (Vicuna)
        dense = dense.eval().requires_grad_(False)
        if getattr(config, "stock_class", None) is None:
            dense = split_fused(dense)
        placed: Any = dense
        return placed.to(device)
    except (RuntimeError, MemoryError, OSError) as error:
        if not out_of_memory(error):
            raise
        raise LorapError(
            f"model.path: there is no memory for the weights of {what} as "
            f"{str(dtype).removeprefix('torch.')} on '{device}' ({one_line(error)}); free some "
            f"or use a 16 bit dtype, then the same command goes on"
        ) from error


@torch.no_grad()
def try_out(model: PreTrainedModel, what: str) -> None:
    """Raise unless the model gives numbers for a few tokens: its configuration may be wrong."""
    ids = torch.arange(TRIED)[None] % model.config.vocab_size
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        if out_of_memory(error):
            raise
        raise LorapError(
            f"model.path: {what} does not compute, its config.json must be wrong: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error
    if not bool(torch.isfinite(logits).all()):
        kind = str(model.dtype).removeprefix("torch.")
        raise LorapError(
            f"model.path: the logits of {what} must be finite numbers, but in {kind} they are not: "
            f"its config.json or its weights are wrong"
        )


def _read_weights(
    model: ModelConfig, config: PreTrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    source = with_weights(model)
    if getattr(config, "stock_class", None) is not None:
        return _reading(source, lambda: checkpoint.load(source.folder, dtype=dtype))
    empty = _architecture(config, f"'{source.location}'")
    renamed = match_folder(source.folder, empty).renamed
    if renamed:
        first, name = next(iter(renamed.items()))
        say(f"  {len(renamed)} tensors have other names in the files: '{first}' is '{name}'")
    mapping = {f"^{_escaped(stored)}$": name for stored, name in renamed.items()}

    def read() -> Any:
        return AutoModelForCausalLM.from_pretrained(
            _at(source),
            config=opening(config, source.folder),
            dtype=dtype,
            trust_remote_code=False,
            output_loading_info=True,
            key_mapping=mapping or None,
        )

    dense, info = _reading(source, read)
    for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        if info[kind]:
            raise LorapError(
                f"model.path: '{source.location}' could not be read whole: "
                f"{kind.replace('_', ' ')} {sorted(map(str, info[kind]))[:3]}"
            )
    for target, origin in empty.all_tied_weights_keys.items():
        if dense.get_parameter(target) is not dense.get_parameter(origin):
            raise LorapError(
                f"model.path: config.json of '{source.location}' says that '{target}' is "
                f"'{origin}' (tie_word_embeddings), but the files hold two different tensors"
            )
    return as_floats(dense)


def _escaped(name: str) -> str:
    return name.replace(".", r"\.")


def check_finite(model: PreTrainedModel, what: str) -> None:
    """Raise unless every weight is a finite number, in the type it was loaded as."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            kind = str(tensor.dtype).removeprefix("torch.")
            raise LorapError(
                f"model.path: the weights of {what} must be finite numbers, but {count:,} of "
                f"'{name}' are not in {kind}"
            )


def _reading(source: Source, read: Callable[[], T], what: str = "it") -> T:
    """Whatever transformers raises over a model's files, as one sentence."""
    try:
        return read()
    except Exception as error:  # of any type: the files decide what fails
        if out_of_memory(error):
            raise
        raise LorapError(
            f"model.path: {what} cannot be read from '{source.location}': "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error
