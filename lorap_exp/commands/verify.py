"""`data verify`: the files of a data folder against its manifest, and what it can serve."""

from collections.abc import Set
from pathlib import Path
from typing import Any

import yaml

from lorap_exp.commands.catalogue import conf_folder
from lorap_exp.data.local import ALPACA_FILE, SPLITS, TASK_SPLITS, text_files
from lorap_exp.data.manifest import read_manifest, state
from lorap_exp.evaluation.profiles import PROFILES


def verify(folder: Path) -> tuple[str, list[str]]:
    """A table of the files with what `data=local` serves from them, and the names that are wrong.

    Raises:
        LorapError: there is no manifest, or it is not one.
    """
    manifest = read_manifest(folder)
    states = {name: state(folder, name, manifest) for name in sorted(manifest)}
    width = max([len("file"), *map(len, states)])
    lines = [f"{'file':<{width}} {'bytes':>12}  state"]
    for name, found in states.items():
        path = folder / name
        size = f"{path.stat().st_size:,}" if path.is_file() else "-"
        lines.append(f"{name:<{width}} {size:>12}  {found}")
    good = {name for name, found in states.items() if found == "ok"}
    return "\n".join([*lines, "", *serves(good)]), sorted(states.keys() - good)


def serves(good: Set[str]) -> list[str]:
    """Texts, splits and tasks that these files are enough for, and what `paper` lacks."""
    lines = ["data=local serves from it:"]
    for text in ("wikitext2", "ptb"):
        found = [(split, good & {*text_files(text, split)}) for split in SPLITS]
        splits = [
            split if text_files(text, split)[0] in names else f"{split} (tokenised)"
            for split, names in found
            if names
        ]
        lines.append(f"  {text:<13} {', '.join(splits) or 'nothing'}")
    calibration = good & {*text_files("c4", "train")}
    lines.append(f"  {'c4':<13} {'train' if calibration else 'nothing'}")
    lines.append(f"  {'alpaca':<13} {'train' if ALPACA_FILE in good else 'nothing'}")
    tasks = [task for task in TASK_SPLITS if f"tasks/{task}.parquet" in good]
    lines.append(f"  {'tasks':<13} {', '.join(tasks) or 'nothing'}")
    missing = [name for name in paper_files() if name not in good]
    verdict = f"lacks {', '.join(missing)}" if missing else "complete"
    return [*lines, f"evaluation=paper: {verdict}"]


def paper_files() -> list[str]:
    """The files that `evaluation=paper` reads."""
    path = conf_folder() / "evaluation" / "paper.yaml"
    paper: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    profile = PROFILES[paper["perplexity"]["profile"]]
    texts = [text_files(text, profile.texts[text][0])[0] for text in paper["perplexity"]["texts"]]
    return texts + [f"tasks/{task}.parquet" for task in paper["zero_shot"]["tasks"]]
