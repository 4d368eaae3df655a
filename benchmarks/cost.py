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
from lorap_exp.calibration.evidence import Sharing
from lorap_exp.calibration.walk import Walk
from lorap_exp.commands.catalogue import conf_folder
from lorap_exp.config import Config, validate
from lorap_exp.data.embedded import part
from lorap_exp.evaluation.perplexity import chunk, mean_nll
from lorap_exp.methods.engine import rewrite_blocks
from lorap_exp.methods.planner import plan_group
from lorap_exp.methods.stack import Stack, build_stack
from lorap_exp.models.families import blocks_of, shapes_of
from lorap_exp.models.loading import load_config, load_model, load_tokenizer
from lorap_exp.models.source import Source
from lorap_exp.ops.low_rank import project_outputs
from lorap_exp.planning.edits import Edit, Factor, Plan
from lorap_exp.planning.shapes import shape_of
from lorap_exp.planning.stack import Budget
from lorap_exp.schema.inputs import ModelConfig
from lorap_exp.workspace.progress import no_bar

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


class Work:
    """A dense model and the plan of a stack for it: what is timed, ready to run."""

    def __init__(self, model: PreTrainedModel, stack: Stack, ratio: float) -> None:
        self.model, self.dense = model, shape_of(shapes_of(model))
        (self.group,) = stack.groups()
        self.edits: dict[str, list[Edit]] = plan_group(
            stack, 0, self.dense, Plan(ratio), Budget(ratio), seen=None
        )

    def compress(self, ids: Tensor, how: Walk, sharing: Sharing | None = None) -> None:
        """Calibrate and rewrite the model in place."""
        rewrite_blocks(
            Source(self.model),
            self.group,
            self.edits,
            self.dense,
            ids=ids,
            how=how,
            sharing=sharing,
            bars=no_bar,
        )

    def factorisations(self) -> None:
        """Every factorisation of the plan on the dense weights, alone."""
        blocks = {block.index: block for block in blocks_of(self.model)}
        factors = [e for own in self.edits.values() for e in own if isinstance(e, Factor)]
        for edit in factors:
            weight = blocks[edit.block].weight(edit.matrix)
            assert edit.rank is not None
            project_outputs(weight, torch.ones(weight.shape[1]), edit.rank)


def evaluation_speed(model: PreTrainedModel, chunks: Tensor) -> float:
    """Tokens per second of `mean_nll` over those of the bare loop."""
    bare = seconds(lambda: bare_loop(model, chunks))
    return bare / seconds(lambda: mean_nll(model, chunks, BATCH))


def compression_cost(
    settings: ModelConfig, stack: Stack, ratio: float, chunks: Tensor, dtype: torch.dtype
) -> float:
    """(seconds of compression - seconds of its factorisations) / seconds of a forward pass."""
    model = load_model(settings, load_config(settings), torch.device("cpu"), dtype, seed=0)
    work = Work(model, stack, ratio)
    bare_loop(model, chunks[:BATCH])
    forward = seconds(lambda: bare_loop(model, chunks))
    alone = seconds(work.factorisations)
    whole = seconds(lambda: work.compress(chunks, Walk(BATCH)))
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
    stack, chunks = build_stack(cfg.method), sample(cfg.model)
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
                compression_cost(cfg.model, stack, ratio, chunks, dtype) for _ in range(REPEATS)
            ]
            print(
                f"| compression at {ratio}: (total - factorisations) / forward pass "
                f"| {name} | {median(costs):.2f} | <= 4 |"
            )


if __name__ == "__main__":
    main()
