"""The compressed model against the original one, answer by answer.

The original's answers are kept in the store: the dense job of a sweep leaves them there, or the
first job that needs them computes them.
"""

from dataclasses import asdict
from functools import partial
from typing import Any

from lorap_exp.compression import Dense, dense_key
from lorap_exp.config import Config
from lorap_exp.evaluation.stability import Choices, Stability, compare
from lorap_exp.job import Job
from lorap_exp.preparation import Inputs
from lorap_exp.reporting.progress import Meter, say


def compare_answers(cfg: Config, inputs: Inputs, job: Job, meter: Meter) -> tuple[Stability, ...]:
    """Stability on every task; nothing for the dense model itself, or when it is not asked for."""
    suite = inputs.suite
    if not suite.stability:
        return ()
    dense = Dense(cfg, inputs, meter)

    def ask(task: str) -> dict[str, Any]:
        say(f"  {task}: asking the dense model")
        return asdict(suite.answer(dense.look(), inputs.tokenizer, task)[1])

    found = []
    with meter.stage("stability"):
        for task in suite.tasks:
            own: dict[str, Any] = job.read(f"choices/{task}.json") or {}
            key = dense_key(cfg, inputs) | {
                "task": task,
                "data": inputs.data.task_digest(task),
                "limit": suite.limit,
            }
            if inputs.plan.is_dense:
                inputs.store.json("choices", key, partial(dict, own))
                continue
            before = Choices.restore(**inputs.store.json("choices", key, partial(ask, task)))
            found.append(compare(task, before, Choices.restore(**own)))
    for one in found:
        say(f"  {one.task}: stability {one.stability:.3f}, agreement {one.agreement:.3f}")
    return tuple(found)
