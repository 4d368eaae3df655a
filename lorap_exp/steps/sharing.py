"""What jobs of one model share: the key of what is derived from it, and tokens to check it with."""

from typing import Any

import torch
from torch import Tensor

from lorap_exp.calibration.evidence import Sharing
from lorap_exp.calibration.sampling import digest
from lorap_exp.config import Config
from lorap_exp.steps.prepare import Inputs
from lorap_exp.workspace.versions import origins


def dense_key(cfg: Config, inputs: Inputs) -> dict[str, Any]:
    """What everything computed from the original model depends on."""
    return {
        "model": inputs.model_digest,
        "dtype": cfg.dtype,
        "device": inputs.device.type,
        "versions": origins(),
    }


def sharing(cfg: Config, inputs: Inputs) -> Sharing:
    """What the statistics of the original model depend on, and where they are kept."""
    assert inputs.calibration is not None
    tokens = {"shape": list(inputs.calibration.shape), "sha256": digest(inputs.calibration)}
    batches = {"batch_size": cfg.calibration.batch_size}
    return Sharing(inputs.store, dense_key(cfg, inputs), {"calibration": tokens | batches})


def check_batch(inputs: Inputs) -> Tensor:
    """A few real sequences on which the reloaded model is compared."""
    if inputs.calibration is not None:
        return inputs.calibration[:2]
    if inputs.suite.texts:
        return inputs.suite.texts[0][1][:2]
    return torch.tensor([inputs.tokenizer("The quick brown fox.")["input_ids"]])
