"""What a model's folder is, before any weight is read: loaded right, or refused in one sentence.

The names and shapes of the stored tensors are compared with those of the architecture. Prefixes
that wrappers leave (torch.compile, DataParallel, a multimodal model around its text model) are
recognised; anything else that is missing, left over or of another size is an error.
"""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Size
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightTransform

from lorap_exp.errors import LorapError, shown
from lorap_exp.models.headers import FLOATS, Stored, read_json, refuse_pointer, stored_tensors
from lorap_exp.models.quantised import PACKAGE, as_written, quantisation_in
from lorap_exp.workspace.extras import require

WRAPPERS = (r"(^|\.)_orig_mod\.", r"^module\.", r"^(model\.)?language_model\.")
"""Left by torch.compile, DataParallel, and a multimodal model around its text model."""
BESIDE_TEXT = re.compile(
    r"^(model\.)?(vision_tower|vision_model|visual|multi_modal_projector|audio_tower|"
    r"vision_embed_tokens|embed_vision|embed_audio)\."
)
"""Parts of a multimodal model that are not its text model."""
HARMLESS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|position_ids|masked_bias|attn\.bias)$")
"""Buffers that older versions of transformers saved; they are computed."""
SHOWN = 3
MOST_LAYERS = 1000
"""No model has more; a configuration that says so is wrong, and takes transformers for ever."""
COUNTS = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size",
    "vocab_size",
    "max_position_embeddings",
    "sliding_window",
)
POSITIVE = (
    "rms_norm_eps",
    "layer_norm_eps",
    "rope_theta",
    "query_pre_attn_scalar",
    "final_logit_softcapping",
    "attn_logit_softcapping",
)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "spiece.model")


@dataclass(frozen=True)
class Match:
    """Stored name -> name in the architecture, of every tensor that is loaded.

    Attributes:
        names: of tensors that are one in both.
        converted: of tensors that transformers itself renames, or merges with others, on loading.
    """

    names: Mapping[str, str]
    converted: Mapping[str, str]

    @property
    def stored(self) -> dict[str, str]:
        """Of all of them, whoever renames them."""
        return {**self.names, **self.converted}

    @property
    def renamed(self) -> dict[str, str]:
        return {stored: name for stored, name in self.names.items() if stored != name}


def check_folder(folder: Path) -> dict[str, Any]:
    """The configuration of a folder that holds a whole model with weights in floating point.

    Raises:
        LorapError: it does not.
    """
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = read_json(adapter).get("base_model_name_or_path")
        raise LorapError(
            f"model.path must be a whole model, got '{folder}' with the adapter '{adapter.name}' "
            f"of {base!r}: merge it (peft's merge_and_unload), or move it out of a folder whose "
            f"own weights are meant"
        )
    if not (folder / "config.json").is_file():
        raise LorapError(
            f"model.path must be a hub id or a folder with config.json, got '{folder}'"
        )
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    if text is not None and not isinstance(text, dict):
        raise LorapError(f"model.path: text_config must be an object, got {shown(text)}")
    for section in (config, text or {}):
        if quantisation_in(section, folder) is not None:
            require(PACKAGE, f"model.path '{folder}', whose weights are quantised,")
        check_numbers(section, f"'{folder / 'config.json'}'")
    if (folder / "generation_config.json").exists():
        read_json(folder / "generation_config.json")
    return config


def check_numbers(section: Mapping[str, Any], what: str) -> None:
    """Raise where a configuration has a size that no model has."""
    for name in COUNTS:
        count = section.get(name)
        if count is not None and (not isinstance(count, int) or isinstance(count, bool)):
            raise LorapError(
                f"model.path: {name} must be a whole number, got {shown(count)} in {what}"
            )
        if count is not None and count < 1:
            raise LorapError(f"model.path: {name} must be at least 1, got {count} in {what}")
    for name in POSITIVE:
        value = section.get(name)
        if isinstance(value, (int, float)) and not value > 0:
            raise LorapError(f"model.path: {name} must be above 0, got {value} in {what}")
    check_layers(section.get("num_hidden_layers"), what)


def check_layers(count: Any, what: str) -> None:
    """Raise where a configuration has more layers than any model."""
    if isinstance(count, int) and count > MOST_LAYERS:
        raise LorapError(
            f"model.path: num_hidden_layers must be at most {MOST_LAYERS}, got {count} in {what}"
        )


def check_tokenizer_files(folder: Path) -> None:
    """Raise where a folder has no tokenizer, or a Git LFS pointer in its place."""
    found = [folder / name for name in TOKENIZERS if (folder / name).is_file()]
    if not found:
        raise LorapError(
            f"model.path must hold its tokenizer ({', '.join(TOKENIZERS[:3])}), got '{folder}' "
            f"without one"
        )
    for path in (folder / name for name in (*TOKENIZERS, "tokenizer_config.json")):
        if path.exists() and not path.is_file():
            raise LorapError(f"model.path: '{path}' must be a file, got a folder")
    for path in found:
        refuse_pointer(path)
        if path.suffix == ".json":
            read_json(path)
    if (folder / "tokenizer_config.json").is_file():
        most = read_json(folder / "tokenizer_config.json").get("model_max_length")
        if most is not None and (not isinstance(most, (int, float)) or isinstance(most, bool)):
            raise LorapError(
                f"model.path: model_max_length of '{folder / 'tokenizer_config.json'}' must be a "
                f"number, got {shown(most)}"
            )


def match_folder(folder: Path, empty: PreTrainedModel) -> Match:
    """Compare what is stored with the architecture of `empty`, whose tensors are shapes only.

    Args:
        folder: of weight files.
        empty: the stock architecture, as its configuration says; of a multimodal model its text
            model, whose other parts are left out.

    Raises:
        LorapError: a tensor is missing, left over, of another size, or quantised.
    """
    wrapped = isinstance(read_json(folder / "config.json").get("text_config"), dict)
    shapes = {name: tensor.shape for name, tensor in empty.state_dict().items()}
    stored = as_written(folder, stored_tensors(folder), shapes)
    return match(folder, stored, empty, wrapped=wrapped)


def match(
    folder: Path, stored: Mapping[str, Stored], empty: PreTrainedModel, *, wrapped: bool
) -> Match:
    """See `match_folder`; `wrapped` where it is the text model of a multimodal one."""
    state = empty.state_dict()
    wanted = {name: tensor.shape for name, tensor in state.items()}
    indices = {name for name, tensor in state.items() if not tensor.is_floating_point()}
    prefix = f"{empty.base_model_prefix}."
    names: dict[str, str] = {}
    extra, merged = [], dict[str, str]()
    conversions = get_model_conversion_mapping(empty, add_legacy=False)
    for name in stored:
        plain = _unwrapped(name)
        plain = plain if plain in wanted or prefix + plain not in wanted else prefix + plain
        if plain in wanted:
            names[name] = plain
        elif (target := _merged(plain, conversions)) in wanted:
            merged[name] = target
        elif not HARMLESS.search(name) and not (wrapped and BESIDE_TEXT.match(name)):
            extra.append(name)
    _refuse_doubles(folder, names)
    _refuse_sizes(folder, {name: stored[name] for name in names}, names, wanted, indices)
    tied = empty.all_tied_weights_keys
    found = {*names.values(), *merged.values()}
    missing = [
        name
        for name in wanted
        if name not in found and tied.get(name) not in found and not _source(name, tied, found)
    ]
    if missing or extra:
        parts = [("lacks", missing), ("has beside them", extra)]
        said = " and ".join(f"{verb} {_some(lost)}" for verb, lost in parts if lost)
        raise LorapError(
            f"model.path must hold exactly the tensors of a {type(empty).__name__} as its "
            f"config.json says, got '{folder}', which {said}"
        )
    return Match(names, merged)


def _merged(name: str, conversions: Sequence[WeightTransform]) -> str:
    """Where transformers puts a stored tensor: experts that are stored apart are loaded as one."""
    for conversion in conversions:
        for pattern in conversion.source_patterns:
            name = re.sub(pattern, conversion.target_patterns[0], name, count=1)
    return name


def check_complete(folder: Path, empty: PreTrainedModel) -> None:
    """Raise unless the weight files of a saved model hold exactly what its architecture has."""
    found = match_folder(folder, empty)
    if found.renamed:
        raise LorapError(
            f"the checkpoint in '{folder}' must have the names it was saved with, got "
            f"{_some(list(found.renamed))}"
        )


def _unwrapped(name: str) -> str:
    """A name without what wrappers put in front of it, however many there are."""
    while True:
        shorter = name
        for pattern in WRAPPERS[:2]:
            shorter = re.sub(pattern, lambda found: "." if found[0][0] == "." else "", shorter)
        inner = re.sub(WRAPPERS[2], "", shorter)
        if inner == name:
            return name
        name = inner


def _source(name: str, tied: Mapping[str, str], found: set[str]) -> bool:
    """Whether another tensor that is there will stand for this one."""
    return any(source == name and target in found for target, source in tied.items())


def _refuse_doubles(folder: Path, names: Mapping[str, str]) -> None:
    seen: dict[str, str] = {}
    for stored, name in names.items():
        if name in seen:
            raise LorapError(
                f"model.path must hold each tensor once, got '{folder}' with '{seen[name]}' and "
                f"'{stored}', which are the same tensor"
            )
        seen[name] = stored


def _refuse_sizes(
    folder: Path,
    stored: Mapping[str, Stored],
    names: Mapping[str, str],
    wanted: Mapping[str, Size],
    indices: Set[str],
) -> None:
    for name, tensor in stored.items():
        where = f"'{name}' of '{folder / tensor.file}'"
        if tensor.dtype not in FLOATS and names[name] not in indices:
            raise LorapError(
                f"model.path must hold weights in floating point ({', '.join(FLOATS)}), got "
                f"{where} of type {tensor.dtype}: it is quantised, or no weight"
            )
        if tensor.shape != tuple(wanted[names[name]]):
            raise LorapError(
                f"model.path: {where} must have the shape {list(wanted[names[name]])} that "
                f"config.json says, got {list(tensor.shape)}"
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:SHOWN]) + more
