"""lm-eval's model class, with every context computed once for all its choices.

Stock lm-eval runs each choice with its whole context and computes the vocabulary's logits
everywhere. Here the requests of a task stand in rows without padding (`rows.py`), and the head
sees only the positions that are scored (`head.py`). Prompts, metrics and tasks stay lm-eval's;
generation is its own too.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorap_exp.evaluation.batches import halving
from lorap_exp.evaluation.head import Head
from lorap_exp.evaluation.rows import Batch, Row, Scored, batch_rows, fill_rows, stack
from lorap_exp.evaluation.stock import model_given
from lorap_exp.workspace.memory import out_of_memory
from lorap_exp.workspace.progress import bar, say

Request = tuple[tuple[str, str] | None, list[int], list[int]]
Answer = tuple[float, bool]
CPU_TOKENS = 1024
"""Tokens of a batch on a CPU: more are no faster, and need more memory."""
CUDA_TOKENS = (1024, 65536)
SHARE = 0.4
"""Of a GPU's free memory, for a batch."""
CHECKED = 3
"""Questions on which both forms are compared."""
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.06}
"""Nats per token, on average, by which the two forms may differ; a wrong mask gives whole nats.

They are compared in float32 where there is memory for it. Where there is none and rounding makes
more, they may differ by twice what stock answers at two batch sizes do.
"""


class Packed(HFLM):  # type: ignore[misc]
    """HFLM whose likelihoods come from packed rows, where the model's answers are then the same.

    Both forms are compared on a few questions before the first others, and again when questions
    come that reach beyond a window of attention. `form` becomes `stock`, with the reason in the
    log, where they differ.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        tokens: int | None = None,
        form: str = "auto",
    ) -> None:
        with model_given():
            super().__init__(
                pretrained=model,
                tokenizer=tokenizer,
                batch_size=batch_size,
                softmax_dtype="float32",
            )
        self.head = Head(model)
        self.form = form
        self._tokens = tokens
        self._checked = 0

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Answer]:
        """See lm-eval; its own bars are not shown."""
        found: list[Answer] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        """(nats, whether greedy decoding says the same) of each request."""
        if self.form == "auto":
            self._check(requests)
        if self.form == "stock":
            return self._stock(requests, override_bs)
        answers = self._packed(requests)
        for (text, *_), answer in zip(requests, answers, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    def _stock(self, requests: list[Request], override_bs: int | None = None) -> list[Answer]:
        found: list[Answer] = super()._loglikelihood_tokens(
            requests, disable_tqdm=True, override_bs=override_bs
        )
        return found

    def _check(self, requests: Sequence[Request]) -> None:
        """Compare both forms on a few questions, unless that was done.

        Where attention has a window, the longest question is among them.
        """
        ordered = sorted(requests, key=lambda request: len(request[1]) + len(request[2]))
        window = getattr(self.model.config, "sliding_window", None)
        chosen = ordered[len(ordered) // 2 if window is None else -1]
        length = len(chosen[1]) + len(chosen[2])
        if self._checked and (window is None or length <= max(self._checked, window)):
            return
        context = chosen[1]
        siblings = [request for request in requests if request[1] == context][:4]
        asked = [*siblings, *ordered[:CHECKED]]
        judge = self._judge()
        try:
            mine = judge._packed(asked)
        except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
            if out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        else:
            theirs = judge._stock(asked, override_bs=1)
            tokens = sum(len(request[2]) for request in asked)
            apart = _apart(mine, theirs) / tokens
            near = apart <= TOLERANCE[judge.model.dtype]
            if near or apart <= 2 * _apart(judge._stock(asked, len(asked)), theirs) / tokens:
                self._checked = max(length, 2 * self._checked)
                return
            reason = f"likelihoods differ by {apart:.3f} nats per token"
        say(f"  zero-shot: questions are not packed for this model ({reason}); stock lm-eval")
        self.form = "stock"

    def _judge(self) -> "Packed":
        """The same in float32, where half of the free memory holds such a copy of the model."""
        weights = list(self.model.parameters())
        size = 4 * sum(weight.numel() for weight in weights)
        room = free_memory(self.device) // 2
        if self.model.dtype == torch.float32 or size > room or any(w.is_meta for w in weights):
            return self
        exact = copy.deepcopy(self.model).float()
        return Packed(exact, self.tokenizer, batch_size=1, tokens=self._tokens, form="packed")

    def _packed(self, requests: Sequence[Request]) -> list[Answer]:
        """Every request, in rows; the next batch is laid out while one computes."""
        limit = self.max_length + 1
        sequences = []
        for index, (_, context, continuation) in enumerate(requests):
            whole = (context + continuation)[-limit:]
            sequences.append(Scored(index, tuple(whole[:-1]), tuple(continuation)))
        rows = fill_rows(sequences)
        nats, greedy = torch.zeros(len(requests)), torch.ones(len(requests), dtype=torch.bool)

        def run(tokens: int) -> None:
            nats.zero_()
            greedy.fill_(True)
            batches = batch_rows(rows, tokens)
            shown = bar("zero-shot", "batch")
            for batch in shown(_ahead(batches)):
                found, matches = self._forward(batch.to(self.device))
                nats.index_add_(0, batch.owners, found.cpu())
                greedy[batch.owners[~matches.cpu()]] = False

        halving(run, self._budget(), "evaluation.zero_shot.batch_tokens")
        return list(zip(nats.tolist(), greedy.tolist(), strict=True))

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        inputs: dict[str, Any] = {}
        if not batch.is_chain:
            inputs = {"attention_mask": self._masks(batch), "position_ids": batch.positions}
        return self.head.log_likelihoods(batch.ids, batch.places, batch.targets, **inputs)

    def _masks(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        """The block mask as the model takes it: added to scores, one for each kind of layer."""
        config, dtype = self.model.config, self.model.dtype
        window = getattr(config, "sliding_window", None)
        default = "full_attention" if window is None else "sliding_attention"
        kinds = set(getattr(config, "layer_types", None) or [default])
        windows = {"full_attention": None, "sliding_attention": window}
        if not kinds <= windows.keys():
            raise NotImplementedError(f"layers of kind {', '.join(sorted(kinds - windows.keys()))}")
        zero = torch.zeros((), dtype=dtype, device=batch.ids.device)
        masks = {
            kind: torch.where(batch.mask(windows[kind]), zero, torch.finfo(dtype).min)
            for kind in sorted(kinds)
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _budget(self) -> int:
        """Tokens of a batch: as asked for, or what a share of the free memory holds."""
        if self._tokens is not None:
            return self._tokens
        if self.device.type != "cuda":
            return CPU_TOKENS
        least, most = CUDA_TOKENS
        free = free_memory(self.device)
        return max(least, min(most, int(SHARE * free / bytes_per_token(self.model))))


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken there."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, _ = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + reserved)


def bytes_per_token(model: PreTrainedModel) -> int:
    """Upper estimate of what a token of a batch needs beside the weights.

    Hidden states and the widest MLP a few times over, its row of the mask, for all heads where
    attention is computed in the open.
    """
    config = model.config
    wide = max(getattr(config, name, 0) or 0 for name in ("intermediate_size", "ffn_dim"))
    inner = 8 * config.hidden_size + 4 * wide + 4 * 256 * config.num_attention_heads
    return math.ceil(inner * model.dtype.itemsize)


def _ahead(batches: Sequence[Sequence[Row]]) -> Iterator[Batch]:
    """Each batch as tensors, made by a thread one ahead of who consumes them."""
    with ThreadPoolExecutor(1) as pool:
        coming = None
        for rows in batches:
            ready, coming = coming, pool.submit(stack, rows)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


def _apart(some: Sequence[Answer], others: Sequence[Answer]) -> float:
    """Nats by which likelihoods differ, over all requests."""
    return sum(abs(one[0] - other[0]) for one, other in zip(some, others, strict=True))
