"""What a decoder is made of, recognised by its structure: names and shapes of its modules.

A decoder is a list of layers, in each of which attention and MLP are a few linear projections
between norms, with an embedding in front and a head behind. Fused projections are recognised too.
An architecture that cannot be understood is refused in one sentence that names what is missing.
"""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorap_exp.errors import LorapError
from lorap_exp.models.modeling_compressed import PARTS, ReplacedLayer, SplitLinear

SHARED_INPUTS = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))
ATTENTION, MLP = ("q", "k", "v", "o"), ("gate", "up", "down")
NAMES = {
    "q": ("q_proj",),
    "k": ("k_proj",),
    "v": ("v_proj",),
    "o": ("o_proj", "out_proj", "dense", "c_proj"),
    "gate": ("gate_proj",),
    "up": ("up_proj", "fc1", "dense_h_to_4h", "c_fc", "fc_in"),
    "down": ("down_proj", "fc2", "dense_4h_to_h", "c_proj", "fc_out"),
}
"""What architectures call their projections."""
FUSED = {
    "qkv_proj": ("q", "k", "v"),
    "query_key_value": ("q", "k", "v"),
    "c_attn": ("q", "k", "v"),
    "Wqkv": ("q", "k", "v"),
    "gate_up_proj": ("gate", "up"),
}
BEFORE_ATTENTION = ("input_layernorm", "ln_1", "self_attn_layer_norm", "ln_attn", "norm1")
BEFORE_MLP = (
    "pre_feedforward_layernorm",
    "post_attention_layernorm",
    "ln_2",
    "final_layer_norm",
    "ln_mlp",
    "norm2",
)
PARALLEL = ("use_parallel_residual", "parallel_attn", "new_decoder_architecture")
NOT_PLAIN = ("apply_residual_connection_post_layernorm",)
PLACE = re.compile(rf"(^|\.)({'|'.join(PARTS)})\.(?=[^.]+(\.(weight|bias))?$)")


@dataclass(frozen=True)
class Traits:
    """What structure cannot tell of an architecture.

    Attributes:
        bos_every_chunk: scores are meaningless unless every sequence starts with BOS.
        fixed_heads: attention takes its number of heads from the configuration although its
            modules look as if it read them off its projections.
        returns_tuple: a decoder layer returns a tuple.
    """

    bos_every_chunk: bool = False
    fixed_heads: bool = False
    returns_tuple: bool = False


TRAITS = {
    "gemma2": Traits(bos_every_chunk=True),
    "gemma3_text": Traits(bos_every_chunk=True),
    "stablelm": Traits(fixed_heads=True),
    "bloom": Traits(returns_tuple=True),
    "falcon": Traits(returns_tuple=True),
}


def traits_of(model_type: str) -> Traits:
    """What is known of an architecture by its name, compressed or not."""
    return TRAITS.get(model_type.removeprefix("compressed_"), Traits())


@dataclass(frozen=True)
class Family:
    """Where the parts of a decoder are; paths are relative to a layer, or to the whole model.

    Attributes:
        model_type: as transformers names it.
        layers: path of the list of layers in the model.
        embedding: path of the token embedding in the model.
        head: path of the output head in the model; tied or not.
        final_norm: path of the last norm in the model, None where there is none.
        matrices: vocabulary name -> path of a projection in a layer, fused ones apart. A
            two-matrix MLP has no gate; a mixture of experts has no MLP matrices.
        fused: path of a fused projection in a layer -> {"parts": [[name, rows], ...], "groups":
            n}; the rows of the parts lie side by side, or take turns in n groups.
        attention: path of the attention module in a layer.
        mlp: path of the MLP module in a layer; None where its projections are the layer's own.
        experts: path of the experts of a mixture in a layer, else None.
        norms: paths in a layer of the norm before attention and of that before the MLP (the same
            one where both read it); empty where they cannot be told.
        residual: sequential (h + attention(norm(h)), then h + mlp(norm(h))), inside (the same,
            but added by attention and MLP themselves), parallel (both added at once), or other
            (normed or scaled before they are added).
        reads_heads: attention reads its number of heads off its projections, so whole heads can
            be removed.
        bos_every_chunk, returns_tuple: see `Traits`.
    """

    model_type: str
    layers: str
    embedding: str
    head: str
    final_norm: str | None
    matrices: Mapping[str, str]
    fused: Mapping[str, Mapping[str, Any]]
    attention: str
    mlp: str | None
    experts: str | None
    norms: tuple[str, ...]
    residual: str
    reads_heads: bool
    bos_every_chunk: bool
    returns_tuple: bool

    @property
    def plain_residual(self) -> bool:
        """The output of `down` is added to the residual stream as it is, so a linear map of it
        can be merged into `down`."""
        return self.residual != "other"

    @property
    def shared_inputs(self) -> list[list[str]]:
        """Groups of matrices that read the same activations."""
        return [[name for name in group if name in self.matrices] for group in SHARED_INPUTS]

    def path(self, position: int, name: str) -> str:
        """Module path of a matrix in the whole model; layers are counted as they stand there."""
        return f"{self.layers}.{position}.{self.matrices[name]}"

    def layout(self) -> dict[str, Any]:
        """As the configuration of a compressed model keeps it."""
        return asdict(self)

    @staticmethod
    def from_layout(layout: Mapping[str, Any]) -> "Family":
        """The reverse of `layout`."""
        known = {field.name: layout[field.name] for field in fields(Family)}
        matrices = {name: known["matrices"][name] for name in NAMES if name in known["matrices"]}
        return Family(**known | {"norms": tuple(layout["norms"]), "matrices": matrices})


def canonical(path: str) -> str:
    """The path of a projection for that of one of its parts."""
    return PLACE.sub(r"\1", path)


def recognise(model: PreTrainedModel) -> Family:
    """The structure of a dense decoder; projections may have been split or changed before.

    Raises:
        LorapError: a part is missing; it is named.
    """
    config = model.config
    path, layers = _find_layers(model)
    layer = layers[0]
    known = traits_of(config.model_type)
    matrices, fused = _projections(layer, config)
    _check_alike(layers, fused, matrices, config)
    attention = _owner(matrices["q"])
    experts = next((n for n, _ in layer.named_modules() if n.endswith("experts")), None)
    mlp = _owner(matrices["up"]) if "up" in matrices else (experts or "").rpartition(".")[0]
    norms, residual = _norms(layer, layer.get_submodule(attention), config)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None:
        raise _unknown(config, "no token embedding and output head")
    return Family(
        model_type=config.model_type,
        layers=path,
        embedding=_path(model, embedding),
        head=_path(model, head),
        final_norm=_final_norm(model, path),
        matrices=matrices,
        fused=fused,
        attention=attention,
        mlp=mlp or None,
        experts=experts,
        norms=norms,
        residual=residual,
        reads_heads=not known.fixed_heads and _reads_heads(layer.get_submodule(attention), fused),
        bos_every_chunk=known.bos_every_chunk,
        returns_tuple=known.returns_tuple,
    )


def matrices_of(layer: nn.Module, family: Family) -> Mapping[str, str]:
    """The matrices of one layer: of a mixture's dense layer too, or of attention alone."""
    if all(_has(layer, path) for path in family.matrices.values()) and family.experts is None:
        return family.matrices
    return _match(layer)


def _unknown(config: PreTrainedConfig, missing: str) -> LorapError:
    return LorapError(
        f"model.path must hold a causal decoder model whose structure can be recognised, but "
        f"'{config.model_type}' has {missing}; docs/families.md says what is looked for"
    )


def _check_alike(
    layers: Sequence[nn.Module],
    fused: Mapping[str, Any],
    matrices: Mapping[str, str],
    config: PreTrainedConfig,
) -> None:
    """Attention is of one kind in every decoder layer."""
    for number, layer in enumerate(layers):
        own = {canonical(path) for path, _ in layer.named_modules()}
        if isinstance(layer, ReplacedLayer):
            continue
        for path in (matrices[name] for name in ATTENTION):
            if path not in own and path.rpartition(".")[0] not in fused.keys() & own:
                raise _unknown(config, f"layers of several kinds: layer {number} has no {path}")


def _find_layers(model: PreTrainedModel) -> tuple[str, Sequence[nn.Module]]:
    count = getattr(model.config, "num_hidden_layers", None)
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not found:
        raise _unknown(model.config, "no list of num_hidden_layers decoder layers")
    path, module = min(found, key=lambda item: item[0].count("."))
    return path, list(module.children())


def _linear_leaves(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Projections of a layer under their own paths; what belongs to single experts is left out."""
    for path, module in layer.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and "expert" not in path:
            yield canonical(path), module


def _match(layer: nn.Module) -> dict[str, str]:
    """Vocabulary name -> path; fused projections count as their parts."""
    leaves = dict(_linear_leaves(layer))
    found: dict[str, str] = {}
    for path in leaves:
        for name in FUSED.get(path.rpartition(".")[2], ()):
            found[name] = f"{path}.{NAMES[name][0]}"
    queries = [found["q"]] if "q" in found else [p for p in leaves if p.endswith(NAMES["q"])]
    attention = _owner(queries[0]) if queries else None
    for name, words in NAMES.items():
        for path in leaves:
            of_attention = _owner(path) == attention
            if path.rpartition(".")[2] in words and of_attention == (name in ATTENTION):
                found.setdefault(name, path)
    order = [name for name in NAMES if name in found]
    return {name: found[name] for name in order}


def _projections(
    layer: nn.Module, config: PreTrainedConfig
) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    matrices, leaves = _match(layer), dict(_linear_leaves(layer))
    seen = ", ".join(leaves) or "nothing"
    missing = [name for name in ATTENTION if name not in matrices]
    if missing:
        raise _unknown(
            config, f"no attention projections {', '.join(missing)} among the layers' linear {seen}"
        )
    mixture = any("experts" in path for path, _ in layer.named_modules())
    if not mixture and not {"up", "down"} <= set(matrices):
        raise _unknown(config, f"no MLP projections up and down among the layers' linear {seen}")
    fused = {}
    attention = layer.get_submodule(_owner(matrices["q"]))
    for path, module in layer.named_modules():
        if isinstance(module, SplitLinear):
            fused[path] = {"parts": _pairs(module.sizes), "groups": module.groups}
        elif (leaf := path.rpartition(".")[2]) in FUSED and path in leaves:
            inputs = _sizes(leaves[matrices["o"]])[0]
            fused[path] = _fused(leaf, _sizes(module)[1], inputs, attention, config)
    return matrices, fused


def _sizes(linear: Any) -> tuple[int, int]:
    """Input and output features."""
    if isinstance(linear, Conv1D):
        return int(linear.weight.shape[0]), int(linear.weight.shape[1])
    return linear.in_features, linear.out_features


def _fused(
    leaf: str, rows: int, queries: int, attention: nn.Module, config: PreTrainedConfig
) -> dict[str, Any]:
    names = [NAMES[name][0] for name in FUSED[leaf]]
    if len(names) == 2:
        return {"parts": _pairs(dict.fromkeys(names, rows // 2)), "groups": 1}
    keys = (rows - queries) // 2
    head = getattr(attention, "head_dim", None) or getattr(attention, "head_size", None)
    head = head or queries // config.num_attention_heads
    groups = keys // head if leaf == "query_key_value" else 1
    sizes = dict(zip(names, (queries, keys, keys), strict=True))
    return {"parts": _pairs(sizes), "groups": groups}


def _pairs(sizes: Mapping[str, int]) -> list[list[Any]]:
    """As JSON keeps their order."""
    return [[name, size] for name, size in sizes.items()]


def _owner(path: str) -> str:
    """The module that a projection belongs to: attention or MLP."""
    owner = path.rpartition(".")[0]
    return owner.rpartition(".")[0] if owner.rpartition(".")[2] in FUSED else owner


def _norms(
    layer: nn.Module, attention: nn.Module, config: PreTrainedConfig
) -> tuple[tuple[str, ...], str]:
    names = [n for n, module in layer.named_children() if "norm" in type(module).__name__.lower()]
    first = next((name for name in BEFORE_ATTENTION if name in names), None)
    if first is None or not getattr(config, "do_layer_norm_before", True):  # OPT-350m: behind
        return (), "other"
    second = next((name for name in BEFORE_MLP if name in names), first)
    scaled = getattr(config, "residual_multiplier", 1.0) != 1.0
    if len(names) > 2 or scaled or any(getattr(config, name, False) for name in NOT_PLAIN):
        return (first, second), "other"
    if "residual" in inspect.signature(type(attention).forward).parameters:
        return (first, second), "inside"
    at_once = second == first or any(getattr(config, name, False) for name in PARALLEL)
    return (first, second), "parallel" if at_once else "sequential"


def _final_norm(model: PreTrainedModel, layers: str) -> str | None:
    owner = layers.rpartition(".")[0]
    found = [
        f"{owner}.{name}"
        for name, module in model.get_submodule(owner).named_children()
        if "norm" in type(module).__name__.lower() and "embed" not in name
    ]
    return found[-1] if found else None


def _reads_heads(attention: nn.Module, fused: Mapping[str, Any]) -> bool:
    """Attention of the common form, without norms over several heads at once."""
    head: Any = getattr(attention, "head_dim", None)
    if head is None or not hasattr(attention, "num_key_value_groups"):
        return False
    norms = [m for m in attention.children() if "norm" in type(m).__name__.lower()]
    wide = any(p.numel() != head for norm in norms for p in norm.parameters())
    return not wide and not any("q_proj" in dict(form["parts"]) for form in fused.values())


def _path(model: nn.Module, wanted: nn.Module) -> str:
    return next(path for path, module in model.named_modules() if module is wanted)


def _has(layer: nn.Module, path: str) -> bool:
    try:
        layer.get_submodule(path)
    except AttributeError:
        return False
    return True


def without_matrices(family: Family) -> Family:
    """For a layer that is no decoder layer."""
    return replace(family, matrices={})
