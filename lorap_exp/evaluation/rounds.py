"""Questions in rounds, until the accuracy of a task is known as well as was asked.

When to stop depends on the standard error alone, not on what would be reported. A model that is
asked more questions is asked all that another one was asked first, in the order of the task.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lm_eval

from lorap_exp.evaluation.packed import Packed

Sample = Mapping[str, Any]
FIRST = 128
"""Questions of the first round, and at least as many in each later one."""


@dataclass(frozen=True)
class Answers:
    """What lm-eval found: metrics by `name,filter`, samples by task, questions asked."""

    metrics: dict[str, float]
    samples: dict[str, list[Sample]]
    count: int


def ask_all(judged: Packed, tasks: Mapping[str, Any], name: str, limit: int | None) -> Answers:
    """The first `limit` questions of a task or group, all at once."""
    output = lm_eval.evaluate(judged, tasks, limit=limit, bootstrap_iters=0)
    assert output is not None
    found = {
        key: float(value)
        for key, value in output["results"][name].items()
        if isinstance(value, float | int) and "," in key and "_stderr" not in key
    }
    leaves = list(tasks["tasks"])
    count = sum(output["n-samples"][leaf]["effective"] for leaf in leaves)
    return Answers(found, {leaf: list(output["samples"][leaf]) for leaf in leaves}, count)


def ask_until(
    judged: Packed, tasks: Mapping[str, Any], metric: str, limit: int | None, stderr: float
) -> Answers:
    """As many questions of one task as the standard error of its metric needs.

    Args:
        judged: the model.
        tasks: of lm-eval, one for which `can_stop`.
        metric: whose standard error counts.
        limit: questions at most.
        stderr: asked; a metric of 0 or 1 counts as 1 / questions.
    """
    ((leaf, task),) = tasks["tasks"].items()
    total = min(len(task.eval_docs), limit or len(task.eval_docs))
    samples: list[Sample] = []
    names: list[str] = []
    wanted = min(FIRST, total)
    while len(samples) < wanted:
        ids = list(range(len(samples), wanted))
        output = lm_eval.evaluate(judged, tasks, samples={leaf: ids}, bootstrap_iters=0)
        assert output is not None
        samples += output["samples"][leaf]
        names = [key for key in output["results"][leaf] if key.partition(",")[0] in samples[0]]
        values = [float(sample[metric]) for sample in samples]
        error = max(mean_error(values), 1 / len(values))
        if error > stderr:
            enough = math.ceil(len(values) * (error / stderr) ** 2)
            wanted = min(max(enough, wanted + FIRST), total)
    means = {
        key: statistics.fmean(float(sample[key.partition(",")[0]]) for sample in samples)
        for key in names
    }
    return Answers(means, {leaf: samples}, len(samples))


def can_stop(tasks: Mapping[str, Any]) -> bool:
    """Whether a task can be asked in rounds: one task of choices whose metrics are means, without
    examples in the prompt, which lm-eval draws in the order of the questions."""
    first, *others = tasks["tasks"].values()
    means = {function.__name__ for function in first.aggregation().values()} == {"mean"}
    choices = first.OUTPUT_TYPE == "multiple_choice" and not first.config.num_fewshot
    return not others and choices and means


def mean_error(values: Sequence[float]) -> float:
    """Standard error of a mean; infinite for fewer than two values."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
