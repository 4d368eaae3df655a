"""What a decoder block is called in each family.

Methods speak of q, k, v, o, gate, up, down; module paths stay here. A new family is one `Family`
entry, one pair of classes in `modeling_compressed.py`, and a line in the tests' list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from transformers import PreTrainedModel

from lorap_exp.errors import LorapError
from lorap_exp.models.modeling_compressed import LowRankLinear
from lorap_exp.planning.plan import BlockShape, MatrixShape, Plan

LLAMA_MATRICES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


@dataclass(frozen=True)
class Family:
    """Paths of one architecture: its list of blocks, and each matrix inside a block.

    `shared_inputs` groups the matrices that read the same activations, so that a statistic of
    their input is taken once.
    """

    model_type: str
    layers: str = "model.layers"
    matrices: Mapping[str, str] = field(default_factory=lambda: dict(LLAMA_MATRICES))
    shared_inputs: Sequence[Sequence[str]] = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))

    def path(self, index: int, name: str) -> str:
        """Module path of a matrix in the whole model."""
        return f"{self.layers}.{index}.{self.matrices[name]}"


FAMILIES = {name: Family(name) for name in ("llama", "qwen2")}


@dataclass(frozen=True)
class Block:
    """Decoder block `index` of a model; its matrices answer to vocabulary names."""

    index: int
    module: nn.Module
    family: Family

    def linear(self, name: str) -> nn.Linear:
        return self.module.get_submodule(self.family.matrices[name])  # type: ignore[return-value]

    def weight(self, name: str) -> Tensor:
        return self.linear(name).weight

    def replace(self, name: str, linear: nn.Linear | LowRankLinear) -> None:
        self.module.set_submodule(self.family.matrices[name], linear)

    def shape(self) -> BlockShape:
        return BlockShape(
            self.index,
            {name: MatrixShape(name, *self.weight(name).shape) for name in self.family.matrices},
        )


def family_of(model_type: str) -> Family:
    """The family of a `config.model_type`, or an error that names the supported ones."""
    if model_type not in FAMILIES:
        raise LorapError(
            f"model.path must hold a causal decoder model of a supported family "
            f"({', '.join(FAMILIES)}), got model_type '{model_type}'; "
            f"docs/families.md shows how to add one"
        )
    return FAMILIES[model_type]


def blocks_of(model: PreTrainedModel) -> list[Block]:
    """The decoder blocks of a dense model, in order."""
    family = family_of(model.config.model_type)
    layers = model.get_submodule(family.layers).children()
    return [Block(index, layer, family) for index, layer in enumerate(layers)]


def module_shapes(plan: Plan, family: Family) -> dict[str, dict[str, int]]:
    """`compressed_modules` of the configuration: the plan's sizes by module path."""
    shapes: dict[str, dict[str, int]] = {}
    for block in plan.blocks:
        for name in family.matrices:
            shape: dict[str, int] = {}
            if block.width is not None and name in ("gate", "up"):
                shape["out_features"] = block.width
            if block.width is not None and name == "down":
                shape["in_features"] = block.width
            if name in block.ranks:
                shape["rank"] = block.ranks[name]
            if shape:
                shapes[family.path(block.index, name)] = shape
    return shapes
