"""Bytes of a saved model's tensors: of a plan, without weights, and of a folder."""

import math
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from lorap_exp.models.forms import causal_class, compressed_config, stock_form
from lorap_exp.models.headers import BITS, stored_tensors
from lorap_exp.models.layout import settings_of
from lorap_exp.models.stock import stock_base, without_factors
from lorap_exp.planning.edits import Plan


def planned_bytes(plan: Plan, dense: PreTrainedConfig, dtype: torch.dtype, form: str) -> int:
    """Bytes of the tensors of a planned model in the form in which it is saved; tied ones once.

    What is measured of the model may move parameters to where a form has indices beside them, so
    the saved model is the truth (`stored_bytes`).

    Args:
        plan: over the original model.
        dense: configuration of the original model.
        dtype: of the weights.
        form: factored or dense, see `forms.export`.
    """
    config = dense if plan.is_dense else compressed_config(dense, settings_of(plan, dense))
    if form == "dense":
        config = without_factors(config)
    if not plan.is_dense:
        config = stock_form(config, stock_base(dense)) or config
    with torch.device("meta"):
        model = causal_class(config)(config).to(dtype)
    model.tie_weights()
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def stored_bytes(folder: Path) -> int:
    """Bytes of the tensors in the weight files of a folder."""
    tensors = stored_tensors(folder).values()
    return sum(math.prod(tensor.shape) * BITS[tensor.dtype] for tensor in tensors) // 8
