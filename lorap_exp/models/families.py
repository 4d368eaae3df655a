"""What a decoder block is called in each family.

Methods speak of q, k, v, o, gate, up, down; module paths stay here. A new family is one `Family`
entry, one pair of classes in `modeling_compressed.py`, and a line in the tests' list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn
from transformers import PreTrainedModel

from lorap_exp.errors import LorapError
from lorap_exp.models.modeling_compressed import LowRankLinear, ReplacedLayer
from lorap_exp.planning.shapes import BlockShape, MatrixShape

LLAMA = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


OPT = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.out_proj",
    "up": "fc1",
    "down": "fc2",
}
PHI3 = LLAMA | {
    "q": "self_attn.qkv_proj.q",
    "k": "self_attn.qkv_proj.k",
    "v": "self_attn.qkv_proj.v",
    "gate": "mlp.gate_up_proj.gate",
    "up": "mlp.gate_up_proj.up",
}
SHARED_INPUTS = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))


@dataclass(frozen=True)
class Family:
    """Paths of one architecture: its list of blocks, and each matrix inside a block.

    Attributes:
        model_type: as transformers names it.
        layers: path of the list of blocks.
        matrices: vocabulary name -> path inside a block; a two-matrix MLP has no gate.
        bos_every_chunk: scores are meaningless unless every sequence starts with BOS.
        heads_from_shapes: attention reads its number of heads off its projections, so whole
            heads can be removed.
        plain_residual: the output of `down` is added to the residual stream as it is, so a linear
            map of it can be merged into `down`.
    """

    model_type: str
    layers: str = "model.layers"
    matrices: Mapping[str, str] = field(default_factory=lambda: dict(LLAMA))
    bos_every_chunk: bool = False
    heads_from_shapes: bool = True
    plain_residual: bool = True

    @property
    def shared_inputs(self) -> list[list[str]]:
        """Groups of matrices that read the same activations."""
        return [[name for name in group if name in self.matrices] for group in SHARED_INPUTS]

    def path(self, position: int, name: str) -> str:
        """Module path of a matrix in the whole model; layers are counted as they stand there."""
        return f"{self.layers}.{position}.{self.matrices[name]}"


FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama"),
        Family("mistral"),
        Family("qwen2"),
        Family("qwen3"),
        Family("gemma3_text", bos_every_chunk=True, plain_residual=False),
        Family("opt", "model.decoder.layers", OPT, heads_from_shapes=False),
        Family("phi3", matrices=PHI3, heads_from_shapes=False),
    )
}


@dataclass(frozen=True)
class Block:
    """Decoder block `index` (its number in the original model); matrices answer to their names.

    A replacement that is no decoder layer has a family without matrices.
    """

    index: int
    module: nn.Module
    family: Family
    groups: int
    """Key-value heads, 0 where their number is fixed."""

    def has(self, place: str) -> bool:
        """Whether it is there: a matrix by its name, or one of the residual stream."""
        return place in self.family.matrices or place in ("residual", "middle")

    def norms_of(self, module: nn.Module) -> tuple[nn.Module, nn.Module]:
        """The norms before attention and before the MLP, of this block or a copy of it."""
        names = ("input_layernorm", "post_attention_layernorm")
        return module.get_submodule(names[0]), module.get_submodule(names[1])

    def linear(self, name: str) -> nn.Linear:
        return self.module.get_submodule(self.family.matrices[name])  # type: ignore[return-value]

    def weight(self, name: str) -> Tensor:
        return self.linear(name).weight

    def replace(self, name: str, linear: nn.Linear | LowRankLinear) -> None:
        self.module.set_submodule(self.family.matrices[name], linear)

    def shape(self) -> BlockShape:
        matrices = {}
        for name in self.family.matrices:
            outs, ins = self.weight(name).shape
            biased = self.linear(name).bias is not None
            matrices[name] = MatrixShape(name, outs, ins, biased=biased)
        return BlockShape(self.index, matrices, self.groups)


def family_of(model_type: str) -> Family:
    """The family of a `config.model_type`, or an error that names the supported ones."""
    if model_type not in FAMILIES:
        raise LorapError(
            f"model.path must hold a causal decoder model of a supported family "
            f"({', '.join(FAMILIES)}), got model_type '{model_type}'; "
            f"docs/families.md shows how to add one"
        )
    return FAMILIES[model_type]


def decoder_family(model: PreTrainedModel) -> Family:
    """The family of a dense or a compressed model."""
    return family_of(model.config.model_type.removeprefix("compressed_"))


def blocks_of(model: PreTrainedModel) -> list[Block]:
    """The blocks in order; those of a shortened model, while it is being compressed, under their
    original numbers."""
    family = decoder_family(model)
    layers = list(model.get_submodule(family.layers).children())
    groups = getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads
    groups = groups if family.heads_from_shapes else 0
    numbers: Sequence[int] = range(len(layers))
    if model.config.model_type.startswith("compressed_"):
        numbers = model.config.original_layers or numbers
    bare = replace(family, matrices={})
    return [
        Block(number, layer, bare if isinstance(layer, ReplacedLayer) else family, groups)
        for number, layer in zip(numbers, layers, strict=True)
    ]


def shapes_of(model: PreTrainedModel) -> list[BlockShape]:
    """The compressible shapes of a dense model."""
    return [block.shape() for block in blocks_of(model)]
