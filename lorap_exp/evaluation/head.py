"""Log-likelihoods without whole logits: hidden states pass the head some rows at a time.

Logits of a whole batch are the largest tensor of an evaluation (8,192 tokens of Gemma: 4 GiB in
bfloat16, twice that as float32). Here only the positions that are scored reach the head, in slices
of bounded size. Shapes: B rows, T positions, N scored positions, H hidden, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from lorap_exp.workspace.progress import say

SLICE = {"cpu": 2**25, "cuda": 2**28}
"""Logits that exist at a time, in the model's dtype."""
FLOAT = {"cpu": 2**20, "cuda": 2**27}
"""Logits that exist at a time in float32: on a CPU they then stay in its cache."""


class Head:
    """The last step of a model, from hidden states to log-likelihoods.

    What a model does to its logits (Gemma's soft cap, the scales of Cohere and Granite) is read
    off its configuration and compared once with its own forward pass. Where the two differ, the
    model computes the logits of the scored positions itself, all at a time, and the log says so.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.sliced = self._agrees()
        if not self.sliced:
            say("  logits: this model's head does more than its configuration says; not sliced")

    @torch.inference_mode()
    def log_likelihoods(
        self, ids_BT: Tensor, places_N: Tensor, targets_N: Tensor, **inputs: Any
    ) -> tuple[Tensor, Tensor]:
        """Nats of each target at its place, and whether the model finds nothing likelier.

        Args:
            ids_BT: tokens.
            places_N: where each target is predicted, counted through the rows; may repeat.
            targets_N: the token that should follow there.
            inputs: further arguments of the forward pass, such as a mask.

        Returns:
            log-likelihoods (N,) in float32 and matches (N,); of equally likely tokens the first
            is the match, as in lm-eval.
        """
        parts = []
        at = 0
        for logits in self._logits(ids_BT, places_N, inputs):
            parts.append(score(logits, targets_N[at : at + len(logits)]))
            at += len(logits)
        likelihoods, matches = zip(*parts, strict=True)
        return torch.cat(likelihoods), torch.cat(matches)

    def _logits(self, ids: Tensor, places: Tensor, inputs: dict[str, Any]) -> Iterator[Tensor]:
        if not self.sliced:
            yield self.model(ids, use_cache=False, **inputs).logits.flatten(0, 1)[places]
            return
        hidden_BTH = self.model.get_decoder()(ids, use_cache=False, **inputs).last_hidden_state
        hidden_NH = hidden_BTH.flatten(0, 1)[places]
        del hidden_BTH
        vocabulary = self.model.config.vocab_size
        for part in hidden_NH.split(rows(SLICE, hidden_NH.device, vocabulary)):
            yield self._finish(part)

    def _finish(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states, with what the configuration says is done to them."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        config = self.model.config
        if (scale := getattr(config, "logit_scale", None)) is not None:
            logits = logits * scale
        if (divisor := getattr(config, "logits_scaling", None)) is not None:
            logits = logits / divisor
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    @torch.inference_mode()
    def _agrees(self) -> bool:
        """Whether the model's own logits are what `_finish` makes of its hidden states."""
        ids = torch.arange(1, 9, device=self.model.device)[None] % self.model.config.vocab_size
        own = self.model(ids, use_cache=False).logits
        if self.model.get_output_embeddings() is None:
            return False
        hidden = self.model.get_decoder()(ids, use_cache=False).last_hidden_state
        return torch.allclose(self._finish(hidden).float(), own.float(), rtol=1e-3, atol=1e-3)


def rows(limit: dict[str, int], device: torch.device, vocabulary: int) -> int:
    """Rows of logits that a limit allows on a device."""
    return max(1, limit.get(device.type, limit["cuda"]) // vocabulary)


def score(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihood in float32 of each target, and whether it is the first of the likeliest."""
    likelihoods, matches = [], []
    step = rows(FLOAT, logits_NV.device, logits_NV.shape[-1])
    for logits, targets in zip(logits_NV.split(step), targets_N.split(step), strict=True):
        wide = logits.float()
        likelihoods.append(-cross_entropy(wide, targets, reduction="none"))
        of_target = wide.gather(-1, targets[:, None])[:, 0]
        match = of_target >= wide.amax(-1)
        if match.any():
            match[match.clone()] = wide[match].argmax(-1) == targets[match]
        matches.append(match)
    return torch.cat(likelihoods), torch.cat(matches)
