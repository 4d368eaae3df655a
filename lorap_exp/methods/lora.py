"""Recovery of a compressed model by LoRA, merged back into its shapes (LoRAP, section 4).

`published`: the factors are multiplied out, adapters of rank r train on the dense products, are
merged, and each product is factored again by plain SVD at rank k + r, so the tuned model is a
little larger. `direct`: adapters train on the factors and the pruned MLP and are merged without
changing a shape.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lorap_exp.calibration.sampling import held_out_windows, read_text
from lorap_exp.data.instructions import Example, collate, encode, read_instructions, windows
from lorap_exp.errors import LorapError
from lorap_exp.methods.contract import Carry, Step, Texts, Whole
from lorap_exp.methods.low_rank import factorise
from lorap_exp.models.families import blocks_of, decoder_family
from lorap_exp.models.forms import multiply_out
from lorap_exp.models.modeling_compressed import LowRankLinear, place, projections
from lorap_exp.ops.low_rank import principal_outputs
from lorap_exp.planning.edits import Edit, Factor
from lorap_exp.training.loop import Schedule, recovery_schedule, train
from lorap_exp.workspace.extras import require


@dataclass(frozen=True, config={"extra": "forbid"})
class LoraRecovery(Step):
    """LoRA over every projection of the decoder.

    Attributes:
        path: direct, or published (see above).
        text: alpaca (instructions, only answers scored), or windows of a calibration text.
        split: of the text; `file` a JSON file of instructions, null for alpaca-cleaned
            from the hub or the folder of data=local.
        samples: examples in all, null for everything there is (instructions only).
        validation_samples: of them, held out; the weights of the best validation loss stay.
        cutoff: tokens of an example.
        epochs: passes over the examples; `max_steps` ends earlier.
    """

    path: Literal["direct", "published"]
    text: Literal["alpaca", "c4", "wikitext2", "embedded"]
    split: Literal["train", "validation"]
    file: str | None
    samples: Annotated[int, Field(ge=2)] | None
    validation_samples: Annotated[int, Field(ge=1)]
    cutoff: Annotated[int, Field(ge=2)]
    rank: Annotated[int, Field(ge=1)]
    alpha: Annotated[int, Field(ge=1)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    learning_rate: Annotated[float, Field(gt=0, le=10)]
    warmup_steps: Annotated[int, Field(ge=0)]
    epochs: Annotated[int, Field(ge=1)]
    max_steps: Annotated[int, Field(ge=1)] | None
    batch_size: Annotated[int, Field(ge=1)]
    micro_batch: Annotated[int, Field(ge=1)]
    evaluate_every: Annotated[int, Field(ge=1)]
    seed: int

    reach: ClassVar[Literal["block", "model"]] = "model"
    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.text != "alpaca" and self.samples is None:
            raise ValueError("samples must be set for a text, got null")
        if self.text != "alpaca" and self.file is not None:
            raise ValueError(f"file must be null unless text is alpaca, got {self.file!r}")

    def check(self, config: PreTrainedConfig) -> None:
        require("peft", "method.stages.recovery")

    def schedule(self, examples: int, dtype: torch.dtype) -> Schedule:
        """Optimisation settings for a training set of this size and a model of this dtype."""
        steps = max(1, self.epochs * examples // self.batch_size)
        steps = steps if self.max_steps is None else min(steps, self.max_steps)
        return recovery_schedule(self, steps, dtype)

    def lengths(self) -> dict[str, int]:
        return {"cutoff": self.cutoff}

    def read(self, texts: Texts) -> list[Example]:
        """Instructions, or windows of text, in a random order that the seed decides.

        The first `validation_samples` are the held-out ones; they share no document with the rest.
        """
        if self.text == "alpaca":
            rows = read_instructions(self.file or texts.data.instructions())
            if self.samples is not None and self.samples > len(rows):
                raise LorapError(
                    f"method.stages.recovery.samples must be at most the {len(rows)} instructions "
                    f"there are, got {self.samples}"
                )
            random.Random(self.seed).shuffle(rows)
            found = encode(rows[: self.samples], texts.tokenizer, self.cutoff)
        else:
            found = windows(self._windows(texts))
        if len(found) <= self.validation_samples:
            raise LorapError(
                f"method.stages.recovery.validation_samples must be below the {len(found)} "
                f"examples there are, got {self.validation_samples}"
            )
        return found

    def _windows(self, texts: Texts) -> Tensor:
        assert self.samples is not None
        return held_out_windows(
            read_text(self.text, self.split, texts.data, "method.stages.recovery"),
            texts.tokenizer,
            samples=self.samples,
            held=min(self.validation_samples, self.samples - 1),
            length=self.cutoff,
            seed=self.seed,
            bos=texts.bos,
            setting="method.stages.recovery.samples x cutoff",
        )

    def apply(
        self, part: Whole, edits: Sequence[Edit], seen: object, carry: Carry
    ) -> Sequence[Edit]:
        """Tune the compressed model in place; return the ranks that it now has."""
        model, examples = part.model, part.read
        held = examples[: self.validation_samples]
        training = examples[self.validation_samples :]
        factored = factored_layers(model)
        if self.path == "published":
            for path, layer in factored.items():
                place(model, path, multiply_out(layer))
        adapted = self._adapt(model)
        pad = pad_token(model)

        def loss(batch: Sequence[Example]) -> Tensor:
            adapted.train()
            return batch_loss(adapted, batch, pad)

        @torch.no_grad()
        def validate() -> float:
            adapted.eval()
            parts = [held[i : i + self.micro_batch] for i in range(0, len(held), self.micro_batch)]
            losses = [batch_loss(adapted, part, pad).item() * len(part) for part in parts]
            return sum(losses) / len(held)

        part.curves["recovery"] = train(
            {name: p for name, p in adapted.named_parameters() if p.requires_grad},
            training,
            loss,
            validate,
            schedule=self.schedule(len(training), model.dtype),
            folder=part.folder,
            progress=part.bars("recovery", "step"),
        )
        merged = adapted.merge_and_unload().eval().requires_grad_(False)
        part.model = merged
        return self._factor_again(merged, factored) if self.path == "published" else ()

    def _adapt(self, model: PreTrainedModel) -> Any:
        """The model with fresh adapters; their initialisation follows from the seed."""
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(self.seed)
        settings = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=linear_paths(model),
            bias="none",
        )
        return get_peft_model(model, settings)

    def _factor_again(
        self, model: PreTrainedModel, factored: Mapping[str, LowRankLinear]
    ) -> list[Edit]:
        """Plain SVD at rank k + r, where that still saves parameters."""
        family, edits = decoder_family(model), list[Edit]()
        for position, block in enumerate(blocks_of(model)):
            for name in block.family.matrices:
                before = factored.get(family.path(position, name))
                if before is None:
                    continue
                linear: Any = block.linear(name)
                rank, (outs, ins) = before.rank + self.rank, linear.weight.shape
                saves = rank * (outs + ins) < outs * ins
                edits.append(Factor(block.index, name, rank if saves else None))
                if saves:
                    basis, _ = principal_outputs(linear.weight, None)
                    block.replace(name, factorise(linear, basis, rank))
        return edits


def factored_layers(model: PreTrainedModel) -> dict[str, LowRankLinear]:
    """Every factorised layer by path."""
    return {p: layer for p, layer in projections(model).items() if isinstance(layer, LowRankLinear)}


def pad_token(model: PreTrainedModel) -> int:
    """A token to fill masked positions with: its value changes nothing."""
    end = model.config.eos_token_id
    return int(end[0] if isinstance(end, list) else end or 0)


def linear_paths(model: PreTrainedModel) -> list[str]:
    """Every linear layer of the decoder's blocks, factors one by one."""
    inside = decoder_family(model).layers + "."
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(inside)
    ]


def batch_loss(model: PreTrainedModel, batch: Sequence[Example], pad: int) -> Tensor:
    """Mean next-token loss over the scored tokens of a batch."""
    ids, labels, mask = (part.to(model.device) for part in collate(batch, pad))
    return model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
