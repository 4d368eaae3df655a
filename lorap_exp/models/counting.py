"""Parameters of a model by part."""

from transformers import (
    PreTrainedModel,
)

from lorap_exp.models.families import (
    decoder_family,
)
from lorap_exp.models.structure import ATTENTION, Family, canonical

DECODER = ("attention", "mlp", "replacement")
"""The parts whose parameters a ratio counts."""


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    """Parameters counted from the model by part, with decoder and total.

    decoder is attention, mlp and what replaces removed layers. A tied output head is the embedding
    and is counted once.
    """
    family = decoder_family(model)
    counts = {"attention": 0, "mlp": 0, "replacement": 0, "other": 0, "embeddings": 0}
    for name, parameter in model.named_parameters():
        counts[part_of(name, family)] += parameter.numel()
    decoder = sum(counts[part] for part in DECODER)
    return counts | {"decoder": decoder, "total": sum(counts.values())}


def part_of(name: str, family: Family) -> str:
    """A parameter's part: attention, mlp, replacement, embeddings (with the head) or other.

    A shortcut counts to what is added after it; a branch, experts and their router to the MLP.
    """
    owner = name.rpartition(".")[0]
    if owner in (family.embedding, family.head):
        return "embeddings"
    if not name.startswith(family.layers + "."):
        return "other"
    inside = canonical(name.removeprefix(family.layers + ".").partition(".")[2])
    if inside.startswith("replacement."):
        return "replacement"
    fused = inside.rpartition(".")[0]
    for matrix, path in family.matrices.items():
        whole = fused in family.fused and path.startswith(fused + ".")
        if whole or inside.startswith(path + "."):
            return "attention" if matrix in ATTENTION else "mlp"
    if inside.startswith("shortcut_attention."):
        return "attention"
    beside = (f"{family.mlp}." if family.experts else f"{family.mlp}.branch.", "shortcut_mlp.")
    return "mlp" if inside.startswith(beside) else "other"
