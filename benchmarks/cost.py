"""What evaluation and compression cost, as ratios measured side by side in one process.

`python -m benchmarks.cost` prints a table: perplexity evaluation against a bare loop over
`model(ids)`, and compression against a plain forward pass plus its factorisations alone.
"""

import time
from collections.abc import Callable
from statistics import median

import hydra
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import PreTrainedModel

import lorap_exp.commands.main  # noqa: F401  (registers the resolvers that conf/ uses)
from lorap_exp.commands.catalogue import conf_folder
from lorap_exp.config import Config, ModelConfig, validate
from lorap_exp.data.embedded import part
from lorap_exp.evaluation.perplexity import chunk, mean_nll
from lorap_exp.methods.stage import Stage, build_stack, compress, plan_stack
from lorap_exp.models.families import blocks_of, shapes_of
from lorap_exp.models.loading import load_config, load_model, load_tokenizer
from lorap_exp.ops.low_rank import project_outputs
from lorap_exp.planning.plan import Plan

REPEATS, BATCH = 3, 16


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@torch.inference_mode()
def bare_loop(model: PreTrainedModel, chunks: Tensor) -> None:
    """The plain forward pass that everything is compared with."""
    for batch in chunks.split(BATCH):
        model(batch)


def factorisations(model: PreTrainedModel, plan: Plan) -> None:
    """Every factorisation of the plan on the dense weights, alone."""
    for block, sizes in zip(blocks_of(model), plan.blocks, strict=True):
        for name, rank in sizes.ranks.items():
            weight = block.weight(name)
            project_outputs(weight, torch.ones(weight.shape[1]), rank)


def evaluation_speed(model: PreTrainedModel, chunks: Tensor) -> float:
    """Tokens per second of `mean_nll` over those of the bare loop."""
    bare = seconds(lambda: bare_loop(model, chunks))
    return bare / seconds(lambda: mean_nll(model, chunks, BATCH))


def compression_cost(
    settings: ModelConfig, stages: list[Stage], ratio: float, chunks: Tensor, dtype: torch.dtype
) -> float:
    """(seconds of compression - seconds of its factorisations) / seconds of a forward pass."""
    model = load_model(settings, load_config(settings), torch.device("cpu"), dtype, seed=0)
    plan = plan_stack(stages, shapes_of(model), ratio)
    bare_loop(model, chunks[:BATCH])
    forward = seconds(lambda: bare_loop(model, chunks))
    alone = seconds(lambda: factorisations(model, plan))
    whole = seconds(
        lambda: compress(
            model, stages, plan, ids=chunks, batch_size=BATCH, propagation="compressed"
        )
    )
    return (whole - alone) / forward


def configuration(*overrides: str) -> Config:
    """The default configuration with overrides."""
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = hydra.compose("config", list(overrides))
    return validate(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]


def sample(model: ModelConfig) -> Tensor:
    """128 x 128 tokens of the embedded text."""
    ids = load_tokenizer(model)("\n\n".join(part(0)), verbose=False)["input_ids"]
    return chunk(torch.tensor(ids), 128)[:128]


def main() -> None:
    """Print the table for SmolLM2-135M on 128 x 128 tokens of the embedded text."""
    cfg = configuration()
    stages, chunks = build_stack(cfg.method).stages, sample(cfg.model)
    print(f"median of {REPEATS}, {torch.get_num_threads()} threads, {cfg.model.name}\n")
    print("| what | dtype | measured | limit |\n| --- | --- | --- | --- |")
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        model = load_model(cfg.model, load_config(cfg.model), torch.device("cpu"), dtype, seed=0)
        bare_loop(model, chunks[:BATCH])
        speed = median(evaluation_speed(model, chunks) for _ in range(REPEATS))
        print(f"| perplexity: tokens/s over a bare loop's | {name} | {speed:.2f} | >= 0.90 |")
        for ratio in (0.2, 0.5):
            costs = [
                compression_cost(cfg.model, stages, ratio, chunks, dtype) for _ in range(REPEATS)
            ]
            print(
                f"| compression at {ratio}: (total - factorisations) / forward pass "
                f"| {name} | {median(costs):.2f} | <= 4 |"
            )


if __name__ == "__main__":
    main()
