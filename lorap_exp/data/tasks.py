"""Facts of the tasks that papers report: one table.

Any other task of lm-eval is known by its name alone, and then comes from the hub with its own
metric, few-shot number and generation.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """A task as papers report it.

    Attributes:
        column: its heading in the table.
        metric: what is reported (arXiv 2404.09695, section 4.1, for the commonsense seven).
        file: lm-eval's own description, below its folder of tasks.
        dataset: arguments of `load_dataset`.
        split: the split that is scored; None for what cannot come from one file of questions,
            because it has parts or a few-shot split.
    """

    column: str
    metric: str
    file: str
    dataset: dict[str, Any]
    split: str | None


ARC = "allenai/ai2_arc"
TASKS = {
    "boolq": Task(
        "BoolQ",
        "acc",
        "super_glue/boolq/default.yaml",
        {"path": "aps/super_glue", "name": "boolq"},
        "validation",
    ),
    "piqa": Task("PIQA", "acc", "piqa/piqa.yaml", {"path": "baber/piqa"}, "validation"),
    "hellaswag": Task(
        "HellaSwag",
        "acc_norm",
        "hellaswag/hellaswag.yaml",
        {"path": "Rowan/hellaswag"},
        "validation",
    ),
    "winogrande": Task(
        "WinoGrande",
        "acc",
        "winogrande/default.yaml",
        {"path": "allenai/winogrande", "name": "winogrande_xl"},
        "validation",
    ),
    "arc_easy": Task(
        "ARC-e", "acc", "arc/arc_easy.yaml", {"path": ARC, "name": "ARC-Easy"}, "test"
    ),
    "arc_challenge": Task(
        "ARC-c",
        "acc_norm",
        "arc/arc_challenge.yaml",
        {"path": ARC, "name": "ARC-Challenge"},
        "test",
    ),
    "openbookqa": Task(
        "OBQA",
        "acc_norm",
        "openbookqa/openbookqa.yaml",
        {"path": "allenai/openbookqa", "name": "main"},
        "test",
    ),
    "mathqa": Task("MathQA", "acc", "mathqa/mathqa.yaml", {"path": "regisss/math_qa"}, "test"),
    "lambada_openai": Task(
        "LAMBADA",
        "acc",
        "lambada/lambada_openai.yaml",
        {"path": "EleutherAI/lambada_openai", "name": "default"},
        "test",
    ),
    "mmlu": Task("MMLU", "acc", "mmlu/default/_mmlu.yaml", {"path": "cais/mmlu"}, None),
    "gsm8k": Task(
        "GSM8K",
        "exact_match,strict-match",
        "gsm8k/gsm8k.yaml",
        {"path": "openai/gsm8k", "name": "main"},
        None,
    ),
}
COMMONSENSE = tuple(TASKS)[:7]
"""The seven of the papers' tables; means are over these."""


def column(task: str) -> str:
    """The heading of a task; others go by their own name."""
    return TASKS[task].column if task in TASKS else task
