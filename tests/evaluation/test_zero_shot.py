import math
from collections.abc import Callable
from pathlib import Path

import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel

from lorap_exp.data.embedded import Embedded
from lorap_exp.data.local import Local
from lorap_exp.data.source import DataSource
from lorap_exp.errors import LorapError
from lorap_exp.evaluation.zero_shot import (
    TASK_FILES,
    TaskScore,
    evaluate_task,
    mean_acc,
    mean_paper,
    write_tasks,
)
from lorap_exp.models.tiny import byte_tokenizer


def test_scores_are_those_of_simple_evaluate(
    tmp_path: Path, tiny: Callable[..., PreTrainedModel]
) -> None:
    model = tiny()
    write_tasks(list(TASK_FILES), Embedded(), tmp_path)
    judged = HFLM(pretrained=model, tokenizer=byte_tokenizer(), batch_size=4)
    output = lm_eval.simple_evaluate(
        judged,
        tasks=["hellaswag"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        num_fewshot=0,
        limit=20,
        bootstrap_iters=10,
    )
    assert output is not None
    expected = output["results"]["hellaswag"]
    score, _ = evaluate_task(
        model, byte_tokenizer(), "hellaswag", folder=tmp_path, limit=20, batch_size=8
    )
    assert score.samples == 20
    assert score.acc == expected["acc,none"]
    assert score.acc_norm == expected["acc_norm,none"]
    assert score.acc_stderr == pytest.approx(expected["acc_stderr,none"])
    assert score.acc_norm_stderr == pytest.approx(expected["acc_norm_stderr,none"])


@pytest.mark.parametrize("task", TASK_FILES)
def test_every_task_on_real_questions(
    shared: Path, tmp_path: Path, tiny: Callable[..., PreTrainedModel], task: str
) -> None:
    data: DataSource = Local(shared / "data")
    write_tasks([task], data, tmp_path)
    score, choices = evaluate_task(
        tiny(), byte_tokenizer(), task, folder=tmp_path, limit=4, batch_size=4
    )
    assert score.samples == len(choices.gold) == len(choices.nll) == 4
    assert all(0 <= gold < len(row) for gold, row in zip(choices.gold, choices.nll, strict=True))
    assert all(nll > 0 for row in choices.nll for nll in row)
    assert 0 <= score.paper[0] <= 1


def test_a_non_finite_likelihood_is_an_error(
    tmp_path: Path, tiny: Callable[..., PreTrainedModel]
) -> None:
    model = tiny()
    model.lm_head.weight[3] = math.inf
    write_tasks(["piqa"], Embedded(), tmp_path)
    with pytest.raises(LorapError, match="likelihood of document 0 of piqa is not finite"):
        evaluate_task(model, byte_tokenizer(), "piqa", folder=tmp_path, limit=2, batch_size=1)


def test_means_follow_the_paper() -> None:
    boolq = TaskScore("boolq", 100, 0.5, 0.05, None, None, 0.0)
    hellaswag = TaskScore("hellaswag", 100, 0.4, 0.04, 0.6, 0.03, 0.0)
    assert mean_paper([boolq, hellaswag]).value == pytest.approx(0.55)
    assert mean_acc([boolq, hellaswag]).value == pytest.approx(0.45)
    assert mean_paper([boolq, hellaswag]).stderr == pytest.approx(math.hypot(0.05, 0.03) / 2)
