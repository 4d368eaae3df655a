"""What a saved model says of itself: its card, plan and result, without a path of this machine."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorap_exp.config import Config
from lorap_exp.models.card import Origin, model_card
from lorap_exp.models.checkpoint import load_config
from lorap_exp.models.families import family_of
from lorap_exp.models.openness import openness, size_advice
from lorap_exp.reporting.result import Result
from lorap_exp.workspace.files import write_text
from lorap_exp.workspace.job import Job
from lorap_exp.workspace.progress import say

LOCAL = ("output_root", "store", "name", "logging")
"""Settings that say where a job ran, not what it computed."""
LORAP = "https://arxiv.org/abs/2404.09695"
STREAMLINE = "https://arxiv.org/abs/2403.19135"


def describe_model(cfg: Config, result: Result, job: Job) -> None:
    """Write README.md, plan.json and result.json into the folder of the job's saved model."""
    folder = job.model_folder
    config = load_config(folder)
    plain = shareable(result.to_dict())
    plan = result.plan.to_dict()
    settings = {"ratio": cfg.ratio, "method": cfg.method.model_dump(mode="json")}
    settings |= {key: plain["config"][key] for key in ("calibration", "dtype")}
    origin = Origin(
        base_model=_name(cfg),
        licence=None,
        method=cfg.method.name,
        settings=settings,
        papers=[STREAMLINE if "layers" in cfg.method.stages else LORAP],
    )
    card = model_card(config, family_of(config), origin, plain, plan)
    write_text(folder / "README.md", card)
    for name, value in (("plan.json", plan), ("result.json", plain)):
        write_text(folder / name, json.dumps(value, indent=1, default=str))
    job.record(folder)
    say(f"  saved model: {openness(config)}")
    if (advice := size_advice(config)) is not None:
        say(f"  {advice}")


def _name(cfg: Config) -> str:
    path = cfg.model.path
    if path is None or Path(path).expanduser().exists():
        return cfg.model.name
    return path


def shareable(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result without the folders of the machine that computed it."""
    config = {k: v for k, v in result["config"].items() if k not in LOCAL}
    config["data"] = config["data"] | {"folder": None}
    model = config["model"]
    if model["path"] and Path(model["path"]).expanduser().exists():
        config["model"] = model | {"path": model["name"]}
    files = [Path(name).name for name in config["calibration"]["files"]]
    config["calibration"] = config["calibration"] | {"files": files}
    source = str(result["source"])
    source = Path(source).name if Path(source).expanduser().exists() else source
    return dict(result) | {"config": config, "source": source}
