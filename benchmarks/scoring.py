"""Zero-shot scoring and perplexity beside their stock forms, in turns in one process.

`python -m benchmarks.scoring [--models smollm2_135m gemma3_270m] [--limit 200] [--dtype bfloat16]`
prints, for the seven tasks on real data: questions/s of packed scoring over those of stock
lm-eval, peak memory above the model, the same accuracies or not, the largest difference of a
likelihood; and seconds of perplexity over those of a bare loop over `model(ids).logits`.

Stock lm-eval runs at the best of three fixed batch sizes, found on the first requests of each
task. Both forms take turns request block by request block, so that a machine that others use slows
both alike; ratios are of the sums of seconds, with the quartiles of the blocks' own ratios.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.cost import configuration
from lorap_exp.data.local import Local
from lorap_exp.data.tasks import COMMONSENSE
from lorap_exp.evaluation.packed import Packed
from lorap_exp.evaluation.perplexity import chunk, mean_nll
from lorap_exp.evaluation.profiles import PROFILES, read_text
from lorap_exp.evaluation.stock import model_given
from lorap_exp.evaluation.tasks import manager, write_tasks
from lorap_exp.evaluation.zero_shot import evaluate_task
from lorap_exp.models.loading import load_config, load_model, load_tokenizer
from lorap_exp.workspace.progress import PEAK_RESET, host_peak

BATCHES = (4, 8, 16)
BLOCKS = 4
"""Turns of each task."""


class Stock(HFLM):  # type: ignore[misc]
    """HFLM that keeps the requests of a task."""

    requests: list[Any]

    def _loglikelihood_tokens(self, requests: list[Any], **options: Any) -> list[Any]:
        self.requests = requests
        return [(0.0, False)] * len(requests)

    def answers(self, requests: list[Any], batch_size: int) -> list[tuple[float, bool]]:
        self.batch_size_per_gpu = batch_size
        return super()._loglikelihood_tokens(requests, disable_tqdm=True)


class Replay(Packed):
    """Gives known answers, so that lm-eval counts them."""

    known: list[tuple[float, bool]]

    def _loglikelihood_tokens(self, requests: list[Any], **options: Any) -> list[Any]:
        return self.known


def timed(work: Callable[[], Any]) -> tuple[Any, float, int]:
    """What work returns, its seconds, and its peak bytes above what was held."""
    PEAK_RESET.write_text("5")
    before, start = host_peak(), time.perf_counter()
    found = work()
    return found, time.perf_counter() - start, host_peak() - before


def blocks(requests: Sequence[Any], count: int) -> list[list[Any]]:
    """Consecutive requests, those of a question never apart."""
    found: list[list[Any]] = [[]]
    for request in requests:
        same = bool(found[-1]) and request[1] == found[-1][-1][1]
        if len(found[-1]) * count >= len(requests) and not same:
            found.append([])
        found[-1].append(request)
    return found


def compare_tasks(model: PreTrainedModel, tokenizer: Any, folder: Path, limit: int) -> None:
    """Print a line for each task and one for all."""
    with model_given():
        stock = Stock(pretrained=model, tokenizer=tokenizer, batch_size=1, softmax_dtype="float32")
    packed = Packed(model, tokenizer, batch_size=1)
    replay = Replay(model, tokenizer, batch_size=1)
    total, ratios, peaks = [0.0, 0.0], [], [0, 0]
    print("| task | stock batch | stock s | packed s | ratio | apart | same accuracies |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for task in COMMONSENSE:
        tasks = manager(task, folder).load([task])
        lm_eval.evaluate(stock, tasks, limit=limit, bootstrap_iters=0)
        requests, seconds = stock.requests, [0.0, 0.0]
        sample = requests[: max(16, len(requests) // 8)]
        best = min(BATCHES, key=lambda b, s=sample: timed(partial(stock.answers, s, b))[1])
        answers: tuple[list[Any], list[Any]] = ([], [])
        for turn, part in enumerate(blocks(requests, BLOCKS)):
            works = [
                partial(stock.answers, part, best),
                partial(packed._loglikelihood_tokens, part),
            ]
            spent = [0.0, 0.0]
            for which in (0, 1) if turn % 2 else (1, 0):
                found, spent[which], peak = timed(works[which])
                answers[which].extend(found)
                peaks[which] = max(peaks[which], peak)
                seconds[which] += spent[which]
            ratios.append(spent[0] / spent[1])
        apart = max(abs(a[0] - b[0]) for a, b in zip(*answers, strict=True))
        metrics = []
        for known in answers:
            replay.known = known
            score, _ = evaluate_task(replay, task, folder=folder, limit=limit, batch_size=1)
            metrics.append(score.metrics)
        same = "yes" if metrics[0] == metrics[1] else f"{metrics[0]} / {metrics[1]}"
        total = [total[0] + seconds[0], total[1] + seconds[1]]
        print(
            f"| {task} | {best} | {seconds[0]:.1f} | {seconds[1]:.1f} "
            f"| {seconds[0] / seconds[1]:.2f} | {apart:.1e} | {same} |",
            flush=True,
        )
    low, _, high = quantiles(ratios, n=4)
    print(
        f"\nall: {total[0]:.1f} s stock, {total[1]:.1f} s packed, ratio {total[0] / total[1]:.2f} "
        f"(blocks: median {median(ratios):.2f}, quartiles {low:.2f} to {high:.2f}); peak above the "
        f"model {peaks[0] / 2**20:.0f} MiB stock, {peaks[1] / 2**20:.0f} MiB packed, "
        f"share {peaks[1] / peaks[0]:.2f}; form {packed.form}\n",
        flush=True,
    )


@torch.inference_mode()
def bare_loop(model: PreTrainedModel, chunks: Tensor, batch: int) -> None:
    """The forward pass that computes all logits and nothing else."""
    for ids in chunks.split(batch):
        _ = model(ids, use_cache=False).logits


def compare_perplexity(model: PreTrainedModel, ids: Tensor, repeats: int = 5) -> None:
    """Print seconds of `mean_nll` over a bare loop's, in turns."""
    print("| chunk | batch | over a bare loop | peak, bare MiB | peak, ours MiB |")
    print("| --- | --- | --- | --- | --- |")
    for length, count, batch in ((128, 32, 16), (2048, 2, 1), (8192, 1, 1)):
        chunks = chunk(ids, length)[:count]
        bare_loop(model, chunks[:1], 1)
        turns = []
        for _ in range(repeats):
            plain = timed(partial(bare_loop, model, chunks, batch))
            ours = timed(partial(mean_nll, model, chunks, batch))
            turns.append((ours[1] / plain[1], plain[2], ours[2]))
        ratio, plain_peak, own_peak = (median(column) for column in zip(*turns, strict=True))
        print(
            f"| {length} | {batch} | {ratio:.2f} | {plain_peak / 2**20:.0f} "
            f"| {own_peak / 2**20:.0f} |",
            flush=True,
        )


def main() -> None:
    """Print the tables for each model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", default=["smollm2_135m", "gemma3_270m"])
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--data", default="../shared/data", help="a folder with MANIFEST.json")
    parser.add_argument("--only", choices=["tasks", "perplexity"], default=None)
    asked = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    data = Local(Path(asked.data))
    for name in asked.models:
        settings = configuration(f"model={name}").model
        dtype = getattr(torch, asked.dtype)
        model = load_model(settings, load_config(settings), torch.device("cpu"), dtype, seed=0)
        tokenizer = load_tokenizer(settings)
        print(f"\n{name}, {asked.dtype}, {torch.get_num_threads()} threads\n", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            if asked.only != "perplexity":
                write_tasks(COMMONSENSE, data, Path(folder))
                compare_tasks(model, tokenizer, Path(folder), asked.limit)
        if asked.only != "tasks":
            text = read_text("wikitext2", PROFILES["lorap"], data).content[:60_000]
            compare_perplexity(model, torch.tensor(tokenizer(text, verbose=False)["input_ids"]))


if __name__ == "__main__":
    main()
