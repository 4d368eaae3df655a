"""The seven commonsense tasks through lm-eval, on the model in memory.

Prompts and metrics are lm-eval's own task files; only the data set is replaced where the data
source says so. Requests are never cached by lm-eval: its cache ignores which model answered.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorap_exp.data.source import DataSource
from lorap_exp.errors import LorapError
from lorap_exp.evaluation.stability import Choices

TASK_FILES = {
    "boolq": "super_glue/boolq/default.yaml",
    "piqa": "piqa/piqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
}
PAPER_METRIC = dict.fromkeys(TASK_FILES, "acc") | dict.fromkeys(
    ("hellaswag", "arc_challenge", "openbookqa"), "acc_norm"
)
"""What the LoRAP tables report for each task (arXiv 2404.09695, section 4.1)."""


@dataclass(frozen=True)
class TaskScore:
    """Accuracies of one task as fractions, with standard errors; acc_norm is None without one."""

    task: str
    samples: int
    acc: float
    acc_stderr: float
    acc_norm: float | None
    acc_norm_stderr: float | None
    seconds: float

    @property
    def paper(self) -> tuple[float, float]:
        """The paper's metric of this task and its standard error."""
        if PAPER_METRIC[self.task] == "acc":
            return self.acc, self.acc_stderr
        assert self.acc_norm is not None and self.acc_norm_stderr is not None
        return self.acc_norm, self.acc_norm_stderr


def write_tasks(tasks: Sequence[str], data: DataSource, folder: Path) -> None:
    """One task file for each task: lm-eval's own, included, with the source's data set."""
    folder.mkdir(parents=True, exist_ok=True)
    builtin = Path(lm_eval.__file__).parent / "tasks"
    for task in tasks:
        settings = {"include": str(builtin / TASK_FILES[task]), "task": task}
        settings |= data.task(task) or {}
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))


def evaluate_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    *,
    folder: Path,
    limit: int | None,
    batch_size: int,
) -> tuple[TaskScore, Choices]:
    """Zero-shot accuracy of a model on one task described in `folder`, and its choices.

    Log-probabilities are taken in float32 whatever the model's dtype.

    Raises:
        LorapError: the task's data cannot be had, or a likelihood is not finite.
    """
    start = time.perf_counter()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    judged = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        softmax_dtype="float32",
    )
    try:
        tasks = TaskManager(include_path=str(folder), include_defaults=False).load([task])
        output = lm_eval.evaluate(judged, tasks, limit=limit, bootstrap_iters=0)
    except (OSError, ConnectionError) as error:
        first = str(error).strip().splitlines()[0]
        raise LorapError(f"evaluation: the data of {task} cannot be had: {first}") from error
    assert output is not None
    _check_finite(task, output["samples"][task])
    scores = output["results"][task]
    score = TaskScore(
        task=task,
        samples=output["n-samples"][task]["effective"],
        acc=scores["acc,none"],
        acc_stderr=_stderr(scores["acc,none"], output["n-samples"][task]["effective"]),
        acc_norm=scores.get("acc_norm,none"),
        acc_norm_stderr=None
        if "acc_norm,none" not in scores
        else _stderr(scores["acc_norm,none"], output["n-samples"][task]["effective"]),
        seconds=time.perf_counter() - start,
    )
    return score, _choices(output["samples"][task], tokenizer)


def _choices(samples: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Choices:
    """Nats per token of every choice, and the right one."""

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    gold, nll = [], []
    for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
        target = sample["target"]
        gold.append(target if isinstance(target, int) else int(sample["doc"]["answer"]) - 1)
        lengths = [tokens(text + rest) - tokens(text) for text, rest in sample["arguments"]]
        totals = [-response[0] for response in sample["filtered_resps"]]
        nll.append(tuple(s / max(n, 1) for s, n in zip(totals, lengths, strict=True)))
    return Choices(tuple(gold), tuple(nll))


def _stderr(accuracy: float, samples: int) -> float:
    """Standard error of a mean of zeros and ones, with the sample variance."""
    return math.sqrt(accuracy * (1 - accuracy) / (samples - 1)) if samples > 1 else math.nan


def _check_finite(task: str, samples: Sequence[Mapping[str, Any]]) -> None:
    for sample in samples:
        for response in sample["filtered_resps"]:
            if not math.isfinite(response[0]):
                raise LorapError(
                    f"evaluation: the likelihood of document {sample['doc_id']} of {task} "
                    f"is not finite"
                )


@dataclass(frozen=True)
class Mean:
    """A plain mean over tasks and its standard error."""

    value: float
    stderr: float


def mean_paper(scores: Sequence[TaskScore]) -> Mean:
    """Mean of the paper's metric of each task (`mean7_paper` over all seven)."""
    return _mean([score.paper for score in scores])


def mean_acc(scores: Sequence[TaskScore]) -> Mean:
    """Mean of plain accuracies (`mean7_acc` over all seven)."""
    return _mean([(score.acc, score.acc_stderr) for score in scores])


def _mean(pairs: Sequence[tuple[float, float]]) -> Mean:
    """Tasks are independent, so variances add."""
    count = len(pairs)
    return Mean(
        sum(value for value, _ in pairs) / count,
        math.sqrt(sum(stderr**2 for _, stderr in pairs)) / count,
    )
