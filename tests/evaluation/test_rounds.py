"""A task that stops early is the first part of the whole task, and knows its standard error."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from lorap_exp.config import Config
from lorap_exp.data.embedded import Embedded
from lorap_exp.data.tasks import COMMONSENSE
from lorap_exp.errors import LorapError
from lorap_exp.evaluation import rounds
from lorap_exp.evaluation.accuracy import TaskScore
from lorap_exp.evaluation.packed import Packed
from lorap_exp.evaluation.stability import Choices
from lorap_exp.evaluation.tasks import manager, write_tasks
from lorap_exp.evaluation.zero_shot import evaluate_task
from lorap_exp.models.tiny import byte_tokenizer

Tiny = Callable[..., PreTrainedModel]
Ask = Callable[..., tuple[TaskScore, Choices]]


@pytest.fixture
def ask(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """A task on the embedded questions, in rounds of ten."""
    monkeypatch.setattr(rounds, "FIRST", 10)
    write_tasks(COMMONSENSE, Embedded(), tmp_path)
    judged = Packed(tiny(), byte_tokenizer(), batch_size=4)

    def run(task: str, limit: int | None = None, stderr: float | None = None) -> object:
        return evaluate_task(
            judged, task, folder=tmp_path, limit=limit, batch_size=4, stderr=stderr
        )

    return run  # type: ignore[return-value]


@pytest.mark.parametrize("task", ["hellaswag", "boolq"])
def test_what_stops_early_is_the_beginning_of_the_task(ask: Ask, task: str) -> None:
    found, choices = ask(task, stderr=0.12)
    assert 10 <= found.samples < 40
    assert found.stderr is not None and found.stderr <= 0.12
    same, expected = ask(task, limit=found.samples)
    assert found.value == same.value
    assert found.stderr == pytest.approx(same.stderr)
    assert found.metrics == pytest.approx(same.metrics)
    assert choices.gold == expected.gold
    assert (found.chance, found.majority) == (same.chance, same.majority)


def test_it_goes_on_to_the_end_where_the_error_stays_above(ask: Ask) -> None:
    whole, _ = ask("arc_easy")
    found, _ = ask("arc_easy", stderr=0.001)
    assert found.samples == whole.samples
    assert found.metrics == pytest.approx(whole.metrics)
    assert ask("arc_easy", limit=15, stderr=0.001)[0].samples == 15


def test_tasks_that_are_asked_in_rounds(tmp_path: Path) -> None:
    write_tasks(COMMONSENSE, Embedded(), tmp_path)
    for task in COMMONSENSE:
        tasks = manager(task, tmp_path).load([task])
        assert rounds.can_stop(tasks), task
    (one,) = tasks["tasks"].values()
    one.config.num_fewshot = 5
    assert not rounds.can_stop(tasks)


def test_answers_are_compared_on_the_same_questions(config: Callable[..., Config]) -> None:
    asked = ["evaluation=quick", "evaluation.zero_shot.stderr=0.02"]
    assert config(*asked).evaluation.zero_shot is not None
    with pytest.raises(LorapError, match="stderr must be null where stability is true.* got 0.02"):
        config(*asked, "evaluation.zero_shot.stability=true")
