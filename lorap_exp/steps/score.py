"""Scores of a job, and its answers against the original model's.

What the original model scores and answers is kept in the store: the first dense job of a sweep
leaves both there, or the first compressed job that needs the answers asks for them.
"""

from dataclasses import asdict
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from lorap_exp.config import Config
from lorap_exp.evaluation.scores import Scores
from lorap_exp.evaluation.stability import Choices, Stability, compare
from lorap_exp.evaluation.suite import evaluate
from lorap_exp.models.digests import digest_tokenizer
from lorap_exp.models.greedy import end_tokens
from lorap_exp.models.source import Source
from lorap_exp.steps.compress import load_dense, open_dense
from lorap_exp.steps.prepare import Inputs
from lorap_exp.steps.sharing import dense_key
from lorap_exp.workspace.job import Job
from lorap_exp.workspace.progress import Meter, say


def score(cfg: Config, inputs: Inputs, job: Job, meter: Meter, source: Source) -> Scores:
    """Everything that the job asks for but stability; a dense model is scored once for all jobs."""

    computed: list[Scores] = []

    def yardstick() -> PreTrainedModel | None:
        return None if inputs.plan.is_dense else load_dense(cfg, inputs, meter)

    suite, place = inputs.suite, inputs.how.place
    asked = {
        "evaluation": cfg.evaluation.model_dump(mode="json", exclude={"name"}),
        "tokenizer": digest_tokenizer(inputs.tokenizer),
        "texts": [text.sha256 for text, _ in suite.texts],
        "tasks": [inputs.data.task_digest(task) for task in suite.tasks],
        "generation": suite.generation.sha256 if suite.generation is not None else None,
        "end": end_tokens(source.model),
    }
    kept = job.under(asked | {"model": job.digest(job.model_folder)})

    def scored() -> Scores:
        for task in suite.tasks:  # a score without its answers cannot be compared
            if kept.read(f"choices/{task}.json", sealed=True) is None:
                kept.forget(f"scores/{task}.json")
        found = evaluate(suite, source, inputs.tokenizer, kept, meter, place, dense=yardstick)
        computed.append(found)
        return computed[0]

    if not inputs.plan.is_dense:
        return scored()
    key = dense_key(cfg, inputs) | asked
    raw = inputs.store.json("scores", key, lambda: asdict(scored()))
    if not computed:
        say("  scored by another job of the same model")
    return Scores.from_dict(raw)


def compare_answers(cfg: Config, inputs: Inputs, job: Job, meter: Meter) -> tuple[Stability, ...]:
    """Stability on every task; nothing for the dense model itself, or when it is not asked for."""
    suite = inputs.suite
    if not suite.stability:
        return ()
    dense: list[PreTrainedModel] = []

    def ask(task: str) -> dict[str, Any]:
        say(f"  {task}: asking the dense model")
        if not dense:
            dense.append(open_dense(cfg, inputs, meter).model)
        return asdict(suite.answer(suite.judge(dense[0], inputs.tokenizer), task)[1])

    found = []
    with meter.stage("stability"):
        for task in suite.tasks:
            own: dict[str, Any] | None = job.read(f"choices/{task}.json")
            key = dense_key(cfg, inputs) | {
                "tokenizer": digest_tokenizer(inputs.tokenizer),
                "task": task,
                "data": inputs.data.task_digest(task),
                "limit": suite.limit,
            }
            if inputs.plan.is_dense:
                if own is not None:
                    inputs.store.json("choices", key, partial(dict, own))
                continue
            assert own is not None
            if not own["gold"]:
                continue  # nothing is chosen in this task
            before = Choices.restore(**inputs.store.json("choices", key, partial(ask, task)))
            found.append(compare(task, before, Choices.restore(**own)))
    for one in found:
        say(f"  {one.task}: stability {one.stability:.3f}, agreement {one.agreement:.3f}")
    return tuple(found)
