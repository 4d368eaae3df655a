"""Tasks through lm-eval, on the model in memory.

Prompts, few-shot examples and metrics are lm-eval's own. Requests are never cached by lm-eval: its
cache ignores which model answered.
"""

import logging
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lm_eval.api.task
from transformers import PreTrainedTokenizerBase

from lorap_exp.data.tasks import TASKS
from lorap_exp.errors import LorapError
from lorap_exp.evaluation.accuracy import TaskScore
from lorap_exp.evaluation.packed import Packed
from lorap_exp.evaluation.rounds import Answers, Sample, ask_all, ask_until, can_stop, mean_error
from lorap_exp.evaluation.stability import Choices
from lorap_exp.evaluation.tasks import manager

lm_eval.api.task.tqdm = partial(lm_eval.api.task.tqdm, disable=True)  # it has no switch of its own
FEWSHOT_SEED = 1234
"""That of `lm_eval.simple_evaluate`: which examples stand in a prompt."""


def evaluate_task(
    judged: Packed,
    task: str,
    *,
    folder: Path,
    limit: int | None,
    batch_size: int,
    stderr: float | None = None,
) -> tuple[TaskScore, Choices]:
    """Score a model on one task, of which `folder` may hold a description, and its choices.

    Log-probabilities are taken in float32 whatever the model's dtype. `batch_size` is that of
    generation and of stock lm-eval. With `stderr`, a task that can stops when it is known so well.

    Raises:
        LorapError: the task's data cannot be had, or a likelihood is not finite.
    """
    start = time.perf_counter()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    judged.batch_size_per_gpu = batch_size
    try:
        tasks = manager(task, folder).load([task])
        for one in tasks["tasks"].values():
            one.set_fewshot_seed(FEWSHOT_SEED)
        found = _ask(judged, tasks, task, limit, stderr)
    except (OSError, ConnectionError) as error:
        first = str(error).strip().splitlines()[0]
        raise LorapError(f"evaluation: the data of {task} cannot be had: {first}") from error
    samples = [sample for own in found.samples.values() for sample in own]
    check_finite(task, samples)
    metrics = {name.removesuffix(",none"): value for name, value in found.metrics.items()}
    metric = TASKS[task].metric if task in TASKS else next(iter(metrics))
    choices = read_choices(tasks["tasks"], found.samples, judged.tokenizer)
    score = TaskScore(
        task=task,
        samples=found.count,
        metric=metric,
        value=metrics[metric],
        stderr=mean_stderr(metric, metrics[metric], samples),
        metrics=metrics,
        chance=choices.chance(),
        majority=choices.majority(),
        shots=max(one.config.num_fewshot or 0 for one in tasks["tasks"].values()),
        form="stock" if judged.form == "stock" else "packed",
        seconds=time.perf_counter() - start,
    )
    return score, choices


def _ask(
    judged: Packed, tasks: Mapping[str, Any], task: str, limit: int | None, stderr: float | None
) -> Answers:
    if stderr is None or not can_stop(tasks):
        return ask_all(judged, tasks, task, limit)
    (one,) = tasks["tasks"].values()
    metric = TASKS[task].metric if task in TASKS else next(iter(one.aggregation()))
    return ask_until(judged, tasks, metric, limit, stderr)


def read_choices(
    tasks: Mapping[str, Any],
    samples: Mapping[str, Sequence[Sample]],
    tokenizer: PreTrainedTokenizerBase,
) -> Choices:
    """The right choice of every question and nats per token of each; none where nothing is chosen.

    A task whose questions have several right choices has none either.
    """

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    gold, nll = [], []
    for name, task in tasks.items():
        if task.OUTPUT_TYPE != "multiple_choice":
            return Choices((), ())
        for sample in sorted(samples[name], key=lambda sample: sample["doc_id"]):
            right = right_choice(task, sample["doc"])
            if right is None:
                return Choices((), ())
            gold.append(right)
            lengths = [tokens(text + rest) - tokens(text) for text, rest in sample["arguments"]]
            totals = [-response[0] for response in sample["filtered_resps"]]
            nll.append(tuple(s / max(n, 1) for s, n in zip(totals, lengths, strict=True)))
    return Choices(tuple(gold), tuple(nll))


def right_choice(task: Any, doc: Mapping[str, Any]) -> int | None:
    """The index of the right choice, as lm-eval reads it off a question."""
    target = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(target, str):
        choices = task.doc_to_choice(doc)
        return int(choices.index(target)) if target in choices else None
    return target if isinstance(target, int) else None


def mean_stderr(metric: str, value: float, samples: Sequence[Sample]) -> float | None:
    """Standard error of a mean over samples; None where the metric is something else."""
    name, _, chosen = metric.partition(",")
    values = [s[name] for s in samples if s["filter"] == (chosen or "none") and name in s]
    plain = [float(v) for v in values if isinstance(v, bool | int | float)]
    if len(plain) < 2 or len(plain) < len(values):
        return None
    if not math.isclose(statistics.fmean(plain), value, rel_tol=1e-6, abs_tol=1e-9):
        return None
    return mean_error(plain)


def check_finite(task: str, samples: Sequence[Sample]) -> None:
    """Every likelihood is a number; one that is not would lose every comparison in silence."""
    for sample in samples:
        for response in sample["filtered_resps"]:
            first = response[0] if isinstance(response, tuple | list) else response
            if isinstance(first, float) and not math.isfinite(first):
                raise LorapError(
                    f"evaluation: the likelihood of document {sample['doc_id']} of {task} "
                    f"is not finite"
                )
