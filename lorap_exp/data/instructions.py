"""Training examples for recovery: alpaca-style instructions, or windows of plain text.

An example is (ids, labels), int64 of one length; a label of -100 is not scored.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lorap_exp.data.hub import UNREACHABLE
from lorap_exp.errors import LorapError, first_line, one_line

Example = tuple[Tensor, Tensor]
ALPACA = "yahma/alpaca-cleaned"
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)


def read_instructions(file: str | None) -> list[dict[str, str]]:
    """Rows with instruction, input and output: from a JSON file, or alpaca-cleaned from the hub."""
    if file is not None:
        path = Path(file).expanduser()
        wanted = "method.stages.recovery.file must be a JSON list of {instruction, input, output}"
        if not path.is_file():
            raise LorapError(f"{wanted}, got '{file}', which does not exist")
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(rows, list) or not rows:
                raise ValueError(f"it is {str(rows)[:40]}")
            return [_instruction(row, number) for number, row in enumerate(rows, start=1)]
        except (ValueError, TypeError, RecursionError) as error:
            raise LorapError(f"{wanted}, got '{file}': {one_line(error)}") from error
    try:
        return list(load_dataset(ALPACA, split="train"))
    except UNREACHABLE as error:
        raise LorapError(
            f"method.stages.recovery.text=alpaca needs '{ALPACA}' from the hub, or "
            f"method.stages.recovery.file; got: {first_line(error)}"
        ) from error


def _instruction(row: Any, number: int) -> dict[str, str]:
    found = {"input": ""} | row if isinstance(row, dict) else {}
    chosen = {key: found.get(key) for key in ("instruction", "input", "output")}
    if not all(isinstance(value, str) for value in chosen.values()):
        raise ValueError(f"entry {number} is {str(row)[:80]!r}")
    return {key: str(value) for key, value in chosen.items()}


def encode(
    rows: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerBase, cutoff: int
) -> list[Example]:
    """Prompt and answer as one sequence of at most `cutoff` tokens; only the answer is scored."""
    if tokenizer.eos_token_id is None:
        raise LorapError("method.stages.recovery: instructions need a tokenizer with an eos_token")
    examples = []
    for row in rows:
        template = WITH_INPUT if row.get("input") else WITHOUT_INPUT
        prompt = tokenizer(template.format(**row))["input_ids"]
        answer = tokenizer(row["output"], add_special_tokens=False)["input_ids"]
        ids = torch.tensor([*prompt, *answer, tokenizer.eos_token_id])[:cutoff]
        labels = ids.clone()
        labels[: len(prompt)] = -100
        if (labels != -100).any():
            examples.append((ids, labels))
    return examples


def windows(ids: Tensor) -> list[Example]:
    """Plain text: every token of every window (N, T) is scored."""
    return [(row, row.clone()) for row in ids]


def collate(examples: Sequence[Example], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids, labels and attention mask (B, T), padded on the right to the longest example."""
    length = max(len(ids) for ids, _ in examples)
    shape = (len(examples), length)
    ids, labels = torch.full(shape, pad), torch.full(shape, -100)
    mask = torch.zeros(shape, dtype=torch.long)
    for row, (one, label) in enumerate(examples):
        ids[row, : len(one)], labels[row, : len(one)], mask[row, : len(one)] = one, label, 1
    return ids, labels, mask
