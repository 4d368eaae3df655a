"""Whether a model is streamed from disk, and how a streamed one is opened."""

from pathlib import Path

import psutil
import torch
from transformers import PreTrainedConfig

from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.models.checkpoint import load_config
from lorap_exp.models.headers import read_json, weight_bytes
from lorap_exp.models.origin import with_weights
from lorap_exp.models.quantised import quantisation_in
from lorap_exp.models.streaming import StreamedSource
from lorap_exp.steps.prepare import Inputs

SHARE = 0.6
"""Of the free memory: weights beyond it are streamed when `stream` is auto."""


def streams(cfg: Config, inputs: Inputs) -> bool:
    """Whether the model is streamed.

    Raises:
        LorapError: it was asked for and cannot be.
    """
    if cfg.stream is False:
        return False
    if cfg.model.random is None and quantised(cfg):
        if cfg.stream is True:
            raise LorapError("stream must be false for a model with quantised weights, got true")
        return False
    if cfg.stream == "auto" and (cfg.model.random is not None or not too_large(cfg)):
        return False
    if cfg.model.random is not None:
        raise LorapError("stream must be false for a random model, which has no files, got true")
    for name, step in () if inputs.plan.is_dense else inputs.stack.steps:
        if reason := step.needs_whole:
            raise LorapError(
                f"stream must be false for method {cfg.method.name}: its stage {name} {reason}"
            )
    if cfg.evaluation.efficiency is not None:
        raise LorapError(
            "stream must be false where evaluation.efficiency is asked for: speed is measured of "
            "models that are in memory"
        )
    return True


def quantised(cfg: Config) -> bool:
    """The model's files hold integers."""
    folder = with_weights(cfg.model).folder
    return quantisation_in(read_json(folder / "config.json"), folder) is not None


def too_large(cfg: Config) -> bool:
    """The weights exceed their share of what is free."""
    size = weight_bytes(with_weights(cfg.model).folder)
    return size > SHARE * psutil.virtual_memory().available


def open_original(cfg: Config, inputs: Inputs, work: Path | None = None) -> StreamedSource:
    """The original model, a block at a time; rewritten blocks go to the folder `work`."""
    return _opened(cfg, inputs, with_weights(cfg.model).folder, inputs.model_config, work)


def open_saved(
    cfg: Config, inputs: Inputs, folder: Path, work: Path | None = None
) -> StreamedSource:
    """A saved model, a block at a time; rewritten blocks go to the folder `work`."""
    return _opened(cfg, inputs, folder, load_config(folder), work)


def _opened(
    cfg: Config, inputs: Inputs, folder: Path, config: PreTrainedConfig, work: Path | None
) -> StreamedSource:
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    return StreamedSource(folder, config, inputs.device, getattr(torch, cfg.dtype), work)
