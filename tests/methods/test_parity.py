"""Parity with the published LoRAP code on its golden cases, to the tolerances they state."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lorap_exp.calibration.walk import Walk
from lorap_exp.evaluation.perplexity import chunk, mean_nll
from lorap_exp.methods.low_rank import LowRank
from lorap_exp.methods.pruning import ChannelPruning
from lorap_exp.methods.stack import Stack
from lorap_exp.models.families import blocks_of
from tests.methods.stacks import compress, planned, rebuilt, shape_of

CASES = [
    "AFM_s0.2_p0.01_a3",
    "AFM_s0.35_p0.01_a3",
    "AWSVD_s0.1_p0.01_a3",
    "AWSVD_s0.2_p0.01_a3",
    "AWSVD_s0.2_p0.05_a3",
    "AWSVD_s0.35_p0.01_a3",
    "SVD_s0.2_p0.01_a3",
    "SVD_s0.5_p0.01_a3",
]


@pytest.mark.parametrize("name", CASES)
def test_published_code(shared: Path, name: str) -> None:
    golden = shared / "golden" / "lorap"
    case = json.loads((golden / "cases" / f"{name}.json").read_text())
    expected = load_file(golden / "cases" / f"{name}.safetensors")
    ids = load_file(golden / "calibration.safetensors")["ids"]
    held = load_file(golden / "heldout.safetensors")["ids"]
    stream = load_file(shared / "golden" / "ppl" / "stream.safetensors")
    model = AutoModelForCausalLM.from_pretrained(golden / "model", dtype=torch.float32).eval()
    metric = case["deco_method"].lower()
    attention = LowRank(
        ("q", "k", "v", "o"), metric, 1.0, "published", case["para_allocate"], 1, True, "pair"
    )
    mlp = ChannelPruning("published", case["mlp_least_save_ratio"], 1, True, 0)
    stack = Stack((("attention", attention), ("mlp", mlp)))
    plan = planned(stack, model, case["sparsity_ratio"])
    blocks = plan.shape(shape_of(model)).blocks
    ranks = [{n: block.matrices[n].rank for n in "qkvo"} for block in blocks]
    assert ranks == case["ranks_per_layer"]
    assert [block.size("ffn") for block in blocks] == case["mlp_kept_per_layer"]
    full = [block.weight("down").clone() for block in blocks_of(model)]
    done = compress(model, stack, case["sparsity_ratio"], ids, Walk(8))
    assert set(done.edits) == set(plan.edits)
    for block in blocks_of(model):
        kept = expected[f"layers.{block.index}.mlp.kept"].long()
        assert torch.equal(block.weight("down"), full[block.index][:, kept])
    for key, product in expected.items():
        if key.endswith("_proj.weight"):
            weight = model.get_submodule("model." + key.removesuffix(".weight")).weight
            assert (weight - product).norm() / product.norm() < 1e-4, key
    compressed = rebuilt(model, done)
    with torch.no_grad():
        logits = compressed(held).logits
    assert (logits - expected["logits"]).norm() / expected["logits"].norm() < 1e-4
    for length, perplexity in case["ppl_official"].items():
        nll = mean_nll(compressed, chunk(next(iter(stream.values())), int(length)), 8)
        assert torch.tensor(nll).exp().item() == pytest.approx(perplexity, rel=1e-5)


def test_dense_perplexity(shared: Path) -> None:
    golden = json.loads((shared / "golden" / "ppl" / "ppl.json").read_text())
    stream = next(iter(load_file(shared / "golden" / "ppl" / "stream.safetensors").values()))
    model = AutoModelForCausalLM.from_pretrained(
        shared / "golden" / "lorap" / "model", dtype=torch.float32
    ).eval()
    for length, expected in golden["dense"].items():
        chunks = chunk(stream, int(length))
        assert len(chunks) == expected["chunks"]
        assert chunks.numel() - len(chunks) == expected["scored_tokens"]
        assert mean_nll(model, chunks, 8) == pytest.approx(expected["mean_nll"], rel=1e-6)
