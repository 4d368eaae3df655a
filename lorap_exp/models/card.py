"""The model card of a saved folder: what was done to which model, what it scores, how to use it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from transformers import PreTrainedConfig

from lorap_exp.models.openness import openness, size_advice
from lorap_exp.models.quantised import stored_bits
from lorap_exp.models.structure import Family

SCORES = "## Scores\n\n"


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, for its card.

    Attributes:
        base_model: hub id of the original model, or what stands for it.
        licence: of the original model, as the hub names it; None when it is not known.
        method: name of the method.
        settings: the method's own settings, and how it was calibrated.
        papers: what to cite.
    """

    base_model: str
    licence: str | None
    method: str
    settings: Mapping[str, Any]
    papers: Sequence[str]


def model_card(
    config: PreTrainedConfig,
    family: Family,
    origin: Origin,
    result: Mapping[str, Any],
    plan: Mapping[str, Any],
) -> str:
    """README.md of a saved folder, with the metadata that hubs read.

    Args:
        config: of the saved model.
        family: of the saved model.
        origin: of the original model and the method.
        result: of the job as `result.json` holds it: `parameters`, `kept`, `scores`, `config`.
        plan: as `plan.json` holds it.
    """
    sections = [
        _metadata(config, origin),
        f"# {_short(origin.base_model)}, compressed by {origin.method}",
        _summary(origin, result),
        openness(config) + ".",
        SCORES + _scores(result),
        "## Loading\n\n" + _loading(config),
        "## LoRA\n\n" + _lora(family),
        "## Sizes\n\n" + _sizes(config),
        "## The same numbers with lm-eval\n\n" + _command(config, result),
        "## How it was made\n\n" + _block("yaml", yaml.safe_dump(dict(origin.settings))),
        "The plan, layer by layer, is in `plan.json`, everything measured in `result.json`.",
        _block("json", json.dumps(_plan_summary(plan))),
        "## Citation\n\n" + ("\n".join(f"- {p}" for p in origin.papers) or "Nothing to cite."),
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(config: PreTrainedConfig, origin: Origin) -> str:
    tags = ["compressed", "lorap-exp", origin.method]
    tags += ["custom_code"] if getattr(config, "stock_class", None) is not None else []
    known: dict[str, Any] = {"base_model": origin.base_model}
    if origin.licence is not None:
        known["license"] = origin.licence
    known |= {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": tags}
    return "---\n" + yaml.safe_dump(known, sort_keys=False).strip() + "\n---"


def _short(base_model: str) -> str:
    return base_model.rpartition("/")[2]


def _summary(origin: Origin, result: Mapping[str, Any]) -> str:
    before, after = (result["parameters"][key]["total"] for key in ("dense", "compressed"))
    return (
        f"{origin.base_model} with {result['kept']:.1%} of the weights of its decoder layers "
        f"({after / 1e6:.1f} of {before / 1e6:.1f} million parameters in all)."
    )


def _scores(result: Mapping[str, Any]) -> str:
    rows = [
        f"| perplexity, {p['label']} ({p['split']}, {p['tokens']:,} tokens in windows of "
        f"{p['length']}) | {p['perplexity']:.3f} | |"
        for p in result["scores"]["perplexity"]
    ]
    for task in result["scores"]["tasks"]:
        error = "" if task["stderr"] is None else f"{task['stderr']:.4f}"
        rows.append(
            f"| {task['task']}, {task['metric']} ({task['samples']:,} questions) | "
            f"{task['value']:.4f} | {error} |"
        )
    if not rows:
        return "None were measured."
    return "\n".join(["| score | value | standard error |", "|---|---|---|", *rows])


def _loading(config: PreTrainedConfig) -> str:
    custom = getattr(config, "stock_class", None) is not None
    trust = ", trust_remote_code=True" if custom else ""
    needed = _block("sh", "pip install compressed-tensors") + "\n\n"
    return ("" if stored_bits(config) is None else needed) + _block(
        "python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto"{trust})\n'
        f'tokenizer = AutoTokenizer.from_pretrained("FOLDER"{trust})',
    )


def _lora(family: Family) -> str:
    names = sorted({path.rpartition(".")[2] for path in family.matrices.values()})
    return (
        f"`target_modules` of peft: {', '.join(f'`{name}`' for name in names)} (a factored "
        f"projection gets an adapter on each factor), `all-linear`, or none: it then takes these."
    )


def _command(config: PreTrainedConfig, result: Mapping[str, Any]) -> str:
    tasks = [task["task"] for task in result["scores"]["tasks"]]
    custom = getattr(config, "stock_class", None) is not None
    trust = ",trust_remote_code=True" if custom else ""
    dtype = result["config"].get("dtype", "auto")
    arguments = f"pretrained=FOLDER{trust},dtype={dtype},softmax_dtype=float32"
    size = (result["config"].get("evaluation", {}).get("zero_shot") or {}).get("batch_size", 16)
    lines = [
        f"lm_eval --model hf --model_args {arguments} --tasks {task} --batch_size {size}"
        for task in tasks or ["arc_easy"]
    ]
    return "One task in a call, as batches change rounding:\n\n" + _block("sh", "\n".join(lines))


def _plan_summary(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan without its layers: what fits into a card."""
    return {key: value for key, value in plan.items() if not isinstance(value, (list, tuple))}


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text.strip()}\n```"


def restate(card: str, before: PreTrainedConfig, after: PreTrainedConfig) -> str:
    """The card of a folder that was turned into another form."""
    card = card.replace(openness(before), openness(after))
    card = card.replace(_loading(before), _loading(after))
    if stored_bits(after) != stored_bits(before):
        card = card.replace(SCORES, f"{SCORES}Measured before the weights were rounded.\n\n")
    card = card.replace(_sizes(before), _sizes(after))
    if getattr(after, "stock_class", None) is None:
        for text in (", trust_remote_code=True", ",trust_remote_code=True", "\n- custom_code"):
            card = card.replace(text, "")
    return card


def _sizes(config: PreTrainedConfig) -> str:
    advice = size_advice(config)
    return f"{advice}." if advice else "Every row is a multiple of 32 values long, as it was."
