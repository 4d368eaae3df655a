import math
from collections.abc import Callable
from pathlib import Path

import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel

from lorap_exp.data.embedded import Embedded
from lorap_exp.data.hub import Hub
from lorap_exp.data.local import Local
from lorap_exp.data.source import DataSource
from lorap_exp.data.tasks import COMMONSENSE, TASKS
from lorap_exp.errors import LorapError
from lorap_exp.evaluation.accuracy import TaskScore, binomial_stderr, mean_acc, mean_paper
from lorap_exp.evaluation.packed import Packed
from lorap_exp.evaluation.tasks import BUILTIN, check_tasks, manager, write_tasks
from lorap_exp.evaluation.zero_shot import evaluate_task
from lorap_exp.models.tiny import byte_tokenizer


def test_scores_are_those_of_simple_evaluate(
    tmp_path: Path, tiny: Callable[..., PreTrainedModel]
) -> None:
    model = tiny()
    write_tasks(COMMONSENSE, Embedded(), tmp_path)
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
    own = Packed(model, byte_tokenizer(), batch_size=8)
    score, _ = evaluate_task(own, "hellaswag", folder=tmp_path, limit=20, batch_size=8)
    assert (score.samples, score.shots, score.form) == (20, 0, "packed")
    assert score.metric == "acc_norm"
    assert score.value == score.metrics["acc_norm"] == expected["acc_norm,none"]
    assert score.metrics["acc"] == expected["acc,none"]
    assert score.acc[1] == pytest.approx(expected["acc_stderr,none"])
    assert score.stderr == pytest.approx(expected["acc_norm_stderr,none"])


@pytest.mark.parametrize("task", COMMONSENSE)
def test_every_task_on_real_questions(
    shared: Path, tmp_path: Path, tiny: Callable[..., PreTrainedModel], task: str
) -> None:
    data: DataSource = Local(shared / "data")
    write_tasks([task], data, tmp_path)
    judged = Packed(tiny(), byte_tokenizer(), batch_size=4)
    score, choices = evaluate_task(judged, task, folder=tmp_path, limit=4, batch_size=4)
    assert score.samples == len(choices.gold) == len(choices.nll) == 4
    assert all(0 <= gold < len(row) for gold, row in zip(choices.gold, choices.nll, strict=True))
    assert all(nll > 0 for row in choices.nll for nll in row)
    assert 0 <= score.value <= 1 and score.form == "packed"
    counts = [len(row) for row in choices.nll]
    assert score.chance == pytest.approx(sum(1 / n for n in counts) / 4)
    assert score.majority == max(choices.gold.count(g) for g in choices.gold) / 4


def test_a_non_finite_likelihood_is_an_error(
    tmp_path: Path, tiny: Callable[..., PreTrainedModel]
) -> None:
    model = tiny()
    model.lm_head.weight[3] = math.inf
    write_tasks(["piqa"], Embedded(), tmp_path)
    judged = Packed(model, byte_tokenizer(), batch_size=1, form="packed")
    with pytest.raises(LorapError, match="likelihood of document 0 of piqa is not finite"):
        evaluate_task(judged, "piqa", folder=tmp_path, limit=2, batch_size=1)


def scored(task: str, metric: str, **metrics: float) -> TaskScore:
    stderr = binomial_stderr(metrics[metric], 100)
    rest = {"chance": 0.5, "majority": 0.6, "shots": 0, "form": "packed", "seconds": 0.0}
    return TaskScore(task, 100, metric, metrics[metric], stderr, metrics, **rest)  # type: ignore[arg-type]


def test_means_follow_the_paper() -> None:
    boolq = scored("boolq", "acc", acc=0.5)
    hellaswag = scored("hellaswag", "acc_norm", acc=0.4, acc_norm=0.6)
    assert mean_paper([boolq, hellaswag]).value == pytest.approx(0.55)
    assert mean_acc([boolq, hellaswag]).value == pytest.approx(0.45)
    both = math.hypot(binomial_stderr(0.5, 100), binomial_stderr(0.6, 100)) / 2
    assert mean_paper([boolq, hellaswag]).stderr == pytest.approx(both)


def test_the_table_names_files_of_lm_eval() -> None:
    """Each with the data set and the metric that lm-eval's own description has."""
    for name, task in TASKS.items():
        assert (BUILTIN / task.file).is_file(), name
        entry = TaskManager(
            include_path=str((BUILTIN / task.file).parent), include_defaults=False
        ).task_index[name]
        assert entry.cfg is not None
        if "dataset_path" in entry.cfg:
            assert entry.cfg["dataset_path"] == task.dataset["path"]
        wanted = task.metric.partition(",")[0]
        metrics = entry.cfg.get("metric_list") or entry.cfg.get("aggregate_metric_list", [])
        assert wanted in [metric["metric"] for metric in metrics] or "include" in entry.cfg


def test_tasks_that_a_source_has_not_are_refused() -> None:
    with pytest.raises(LorapError, match=r"must be among boolq, .* with data=embedded.* 'mmlu'"):
        check_tasks(["boolq", "mmlu"], Embedded())
    with pytest.raises(LorapError, match=r"zero_shot.tasks must be among .*, got 'foo'"):
        check_tasks(["foo"], Embedded())
    check_tasks(["mmlu", "gsm8k"], Hub())


@pytest.mark.slow
def test_any_task_of_lm_eval_is_known_by_its_name(tmp_path: Path) -> None:
    check_tasks(["sciq"], Hub())
    with pytest.raises(LorapError, match=r"any other task of lm-eval .* got 'scik' \(near: .*sciq"):
        check_tasks(["scik"], Hub())
    assert "sciq" in manager("sciq", tmp_path).task_index


OWN = """
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
fewshot_split: test
num_fewshot: 2
output_type: KIND
doc_to_text: "{{text}}"
doc_to_target: "{{target}}"
"""
GREEDY = """
generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
LAST_WORD = """
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


@pytest.mark.parametrize(
    ("kind", "rest", "metric"),
    [("generate_until", GREEDY, "exact_match"), ("loglikelihood", LAST_WORD, "perplexity")],
)
def test_a_task_keeps_its_own_metric_shots_and_generation(
    tmp_path: Path, tiny: Callable[..., PreTrainedModel], kind: str, rest: str, metric: str
) -> None:
    """A task outside the table, as lm-eval scores it with the stock model class."""
    data = tmp_path / "own.jsonl"
    lines = [f'{{"text": "say {n} again:", "target": " {n}"}}\n' for n in ("one", "two", "six")]
    data.write_text("".join(lines))
    description = OWN.replace("FILE", str(data)).replace("KIND", kind) + rest
    (tmp_path / "own.yaml").write_text(description)
    model = tiny()
    own = Packed(model, byte_tokenizer(), batch_size=2)
    score, choices = evaluate_task(own, "own", folder=tmp_path, limit=None, batch_size=2)
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False).load(["own"])
    tasks["tasks"]["own"].set_fewshot_seed(1234)
    stock = HFLM(pretrained=model, tokenizer=byte_tokenizer(), batch_size=2)
    output = lm_eval.evaluate(stock, tasks, bootstrap_iters=0)
    assert output is not None
    assert (score.metric, score.samples, score.shots) == (metric, 3, 2)
    for name, value in score.metrics.items():
        assert value == pytest.approx(output["results"]["own"][f"{name},none"], rel=1e-4)
    assert (score.chance, score.majority, choices.gold) == (None, None, ())
    assert (score.stderr is None) == (metric == "perplexity")
