"""Greedy generation through lm-eval: does the model continue a text with the word that follows?

A passage of the perplexity text is cut after a number of words; the first generated word must be
the next one (case ignored). The seven tasks only rank given answers; this one runs the model with
its key-value cache, token by token.
"""

import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path

import lm_eval
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorap_exp.data.source import Text
from lorap_exp.errors import LorapError
from lorap_exp.evaluation.accuracy import GenerationScore
from lorap_exp.evaluation.stock import model_given
from lorap_exp.models.greedy import greedy

TASK = "next_word"
WORD = re.compile(r"[^\W\d_]{3,}")
SETTINGS = {
    "task": TASK,
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{passage}}",
    "doc_to_target": "{{word}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
    "filter_list": [
        {
            "name": "first_word",
            "filter": [
                {"function": "regex", "regex_pattern": r"^\s*([\w'-]+)"},
                {"function": "take_first"},
            ],
        }
    ],
    "metric_list": [
        {
            "metric": "exact_match",
            "aggregation": "mean",
            "higher_is_better": True,
            "ignore_case": True,
        }
    ],
}


def passages(text: Text, samples: int, words: int) -> list[dict[str, str]]:
    """Up to `samples` passages of `words` words, evenly spaced, each with the word after it.

    Raises:
        LorapError: no paragraph is long enough.
    """
    found = []
    for paragraph in text.content.split("\n\n"):
        parts = paragraph.split()
        if len(parts) > words and WORD.fullmatch(parts[words]):
            found.append({"passage": " ".join(parts[:words]), "word": parts[words]})
    if not found:
        raise LorapError(
            f"evaluation.generation.words must leave a paragraph of {text.label} with more words, "
            f"got {words}"
        )
    step = max(1, len(found) // samples)
    return found[::step][:samples]


def write_task(rows: Sequence[dict[str, str]], folder: Path) -> None:
    """The passages and lm-eval's description of the task."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{TASK}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = {"dataset_kwargs": {"data_files": {"test": str(data.resolve())}}}
    (folder / f"{TASK}.yaml").write_text(yaml.safe_dump(SETTINGS | files, sort_keys=False))


def evaluate_generation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    label: str,
    *,
    folder: Path,
    batch_size: int,
) -> GenerationScore:
    """Score a model on the passages in `folder`."""
    start = time.perf_counter()
    with model_given():
        judged = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    tasks = TaskManager(include_path=str(folder), include_defaults=False).load([TASK])
    with greedy(model):
        output = lm_eval.evaluate(judged, tasks, bootstrap_iters=0)
    assert output is not None
    accuracy = output["results"][TASK]["exact_match,first_word"]
    samples = output["n-samples"][TASK]["effective"]
    return GenerationScore(
        label=label,
        samples=samples,
        accuracy=accuracy,
        stderr=math.sqrt(accuracy * (1 - accuracy) / max(samples - 1, 1)),
        seconds=time.perf_counter() - start,
    )
