"""Remove the most redundant layers and train a lightweight replacement: LLM-Streamline.

arXiv 2403.19135. Layers are chosen on the original model (`selection`), and replaced by nothing, a
trained network (`replacement`), or a linear map in closed form; the stages of the stack that
follow see a shorter model.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lorap_exp.calibration.sampling import packed_windows, read_text
from lorap_exp.data.source import DataSource
from lorap_exp.errors import LorapError
from lorap_exp.methods.linear_map import Fit, linear_replacement, merge_linear_map
from lorap_exp.methods.replacement import Initialisation, build_network, front_of
from lorap_exp.methods.replacement_training import Bars, Trainer, Training
from lorap_exp.methods.selection import (
    CONTIGUOUS,
    PUBLISHED_PROTECTION,
    Criterion,
    Progress,
    Selection,
    select,
)
from lorap_exp.models.families import blocks_of, family_of
from lorap_exp.models.layout import cut
from lorap_exp.planning.plan import BlockShape, Removal
from lorap_exp.planning.spans import divide, net_layers, span_length
from lorap_exp.training.loop import Curve

TRAINED = ("ffn", "swiglu", "transformer")


@dataclass(frozen=True, config={"extra": "forbid"})
class LayerRemoval:
    """Remove layers, and put `count` networks in their place.

    Attributes:
        criterion: cosine (LLM-Streamline), angular (UIDL), deepest, fixed (from `start`): one span;
            block_influence (ShortGPT), perplexity, taylor (Shortened LLaMA), sleb: any layers.
        num_layers: net layers to remove; null derives them from the ratio.
        share: part of the ratio that this stage takes when other stages follow.
        protect: first and last layers that stay; null for what the criterion's source says.
        replacement: none, ffn, swiglu, transformer (trained), linear or linear_merged (closed form,
            the latter inside the MLP before the span).
        initialisation: first (inherited from the first removed layer), random, residual (the
            identity); null for the published one: first for transformer, else random.
        arrangement: of several networks: series (one after the other, trained jointly) or segments
            (each for its own part of the span).
        ridge: of the closed forms, relative to the mean square of the input.
        fit: the error that the closed forms make least: mse, or nmse (relative; ours).
    """

    criterion: Criterion
    num_layers: Annotated[int, Field(ge=1)] | None
    share: Annotated[float, Field(gt=0, le=1)]
    protect: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] | None
    start: Annotated[int, Field(ge=0)] | None
    replacement: Literal["none", "ffn", "swiglu", "transformer", "linear", "linear_merged"]
    initialisation: Initialisation | None
    count: Annotated[int, Field(ge=1)]
    arrangement: Literal["series", "segments"]
    ridge: Annotated[float, Field(ge=0)]
    fit: Fit
    training: Training

    def __post_init__(self) -> None:
        if self.replacement != "none" and self.criterion not in CONTIGUOUS:
            raise ValueError(
                f"criterion must be one of {', '.join(CONTIGUOUS)} for a replacement, which needs "
                f"one span, got {self.criterion}"
            )
        if (self.start is None) == (self.criterion == "fixed"):
            raise ValueError(
                f"start must be set when criterion is fixed, and only then, got {self.start}"
            )
        if self.count > 1 and self.replacement not in TRAINED:
            raise ValueError(
                f"count must be 1 for replacement {self.replacement}, got {self.count}"
            )

    @property
    def kind(self) -> str:
        """What stands in the list of layers."""
        return "none" if self.replacement == "linear_merged" else self.replacement

    @property
    def trains(self) -> bool:
        return self.replacement in TRAINED

    def check(self, config: PreTrainedConfig) -> None:
        """Raise unless the replacement fits the architecture."""
        if self.replacement == "linear_merged" and not family_of(config).plain_residual:
            raise LorapError(
                f"method.stages.layers.replacement must not be linear_merged for "
                f"'{config.model_type}' models that normalise the output of their MLP"
            )

    def plan(self, shapes: Sequence[BlockShape], budget: float, *, alone: bool) -> Removal:
        """The removal at its size, placed as deep as it may be until the layers are chosen.

        Args:
            shapes: of the dense blocks.
            budget: weights that this stage is to remove.
            alone: nothing follows that could take up the rounding.

        Raises:
            ValueError: the model has too few layers for it, or nothing to inherit from.
        """
        self._check_inheritance(shapes[0])
        net = self.num_layers
        if net is None:
            net = net_layers(shapes, budget, self.kind, self.count, exceed=alone)
        length = span_length(net, self.kind, self.count)
        first, last = self.protected
        room = len(shapes) - first - last
        if not 0 < length <= room or length == len(shapes):
            raise ValueError(
                f"the {length} layers to remove must fit into the {max(room, 0)} layers that are "
                f"not protected, and leave one"
            )
        start = len(shapes) - last - length if self.start is None else self.start
        if start < first or start + length > len(shapes) - last:
            raise ValueError(
                f"start must lie between {first} and {len(shapes) - last - length} for {length} "
                f"layers, got {self.start}"
            )
        if self.replacement == "linear_merged" and start == 0:
            raise ValueError("start must be at least 1 for replacement linear_merged, got 0")
        return self._removal(tuple(range(start, start + length)))

    def _check_inheritance(self, layer: BlockShape) -> None:
        """An ffn inherits only from an MLP of its own shape; transformer and swiglu always can."""
        if self.initialisation != "first" or self.kind not in ("ffn", "swiglu"):
            return
        up, gated = layer.matrices["up"], "gate" in layer.matrices
        if gated != (self.kind == "swiglu") or (
            not gated and up.out_features != 4 * up.in_features
        ):
            raise ValueError(
                f"method.stages.layers.initialisation must be random or residual for "
                f"{self.kind}: the MLP of this model has another shape, got first"
            )

    @property
    def protected(self) -> tuple[int, int]:
        """First and last layers that stay, whoever says so."""
        first, last = self.protect or PUBLISHED_PROTECTION.get(self.criterion, (0, 0))
        return (max(first, 1), last) if self.replacement == "linear_merged" else (first, last)

    def _removal(self, layers: tuple[int, ...]) -> Removal:
        if self.kind == "none":
            return Removal(layers)
        residual = self.initialisation == "residual" and self.kind != "transformer"
        return divide(layers[0], layers[-1] + 1, self.kind, self.count, residual)

    def place(self, selection: Selection) -> Removal:
        """The removal of the layers that were chosen."""
        return self._removal(selection.removed)

    def windows(
        self, tokenizer: PreTrainedTokenizerBase, data: DataSource, bos: int | None
    ) -> Tensor | None:
        """Training windows (samples, length), the held-out ones first; None without training."""
        if not self.trains:
            return None
        wanted = self.training
        setting = "method.stages.layers.training"
        return packed_windows(
            read_text(wanted.text, wanted.split, data, setting),
            tokenizer,
            held_out=wanted.validation_samples,
            samples=wanted.samples,
            length=wanted.length,
            seed=wanted.seed,
            bos=bos,
            setting=f"{setting}.samples x length",
        )

    def select(
        self,
        model: PreTrainedModel,
        ids: Tensor,
        length: int,
        batch_size: int,
        progress: Progress = iter,
    ) -> Selection:
        """Choose `length` layers of the dense model on calibration tokens (samples, T)."""
        return select(
            model,
            ids,
            length,
            criterion=self.criterion,
            protect=self.protected,
            start=self.start,
            batch_size=batch_size,
            progress=progress,
        )

    def remove(
        self,
        take: Callable[[], PreTrainedModel],
        removal: Removal,
        *,
        calibration: Tensor,
        windows: Tensor | None,
        batch_size: int,
        folder: Path,
        bars: Bars,
    ) -> tuple[PreTrainedModel, dict[str, Curve]]:
        """The shortened model with trained replacements, and the loss curves.

        Args:
            take: hands over the dense model; it is called again, and loads it anew, when the
                layers behind the span are needed after training, so they use no memory before.
            removal: the chosen layers.
            calibration: tokens of the closed forms (samples, T).
            windows: training tokens.
            batch_size: sequences at a time for the closed forms.
            folder: where training keeps its state.
            bars: progress bars.
        """
        if self.replacement == "none":
            return cut(take(), removal, {}), {}
        if not self.trains:
            batches = calibration.split(batch_size)
            dense = take()
            if self.replacement == "linear_merged":
                merge_linear_map(dense, removal, batches, self.ridge, self.fit)
                return cut(dense, removal, {}), {}
            network = linear_replacement(dense, removal, batches, self.ridge, self.fit)
            return cut(dense, removal, {removal.layers[0]: network}), {}
        assert windows is not None
        return self._train(take, removal, windows, folder, bars)

    def _train(
        self,
        take: Callable[[], PreTrainedModel],
        removal: Removal,
        windows: Tensor,
        folder: Path,
        bars: Bars,
    ) -> tuple[PreTrainedModel, dict[str, Curve]]:
        dense = take()
        dtype = dense.dtype
        networks = self._networks(dense, removal)
        trainer = Trainer(
            self.training,
            self.arrangement,
            windows=windows,
            dtype=dtype,
            folder=folder,
            bars=bars,
        )
        curves: dict[str, Curve] = {}
        for stage in self.training.stages:
            if stage == "lm":
                curves[stage] = trainer.predict(dense, removal, networks)
                continue
            front = front_of(dense, removal)
            del dense  # the layers behind the span go with it
            curves[stage] = trainer.match(stage, front, networks)
            del front
            dense = take()
        finished = {int(start): network.to(dtype) for start, network in networks.items()}
        return cut(dense, removal, finished), curves

    def _networks(self, dense: PreTrainedModel, removal: Removal) -> nn.ModuleDict:
        """The networks to train, in float32, by the first layer that each stands for."""
        torch.manual_seed(self.training.seed)
        blocks, networks = blocks_of(dense), nn.ModuleDict()
        start_from = self.initialisation or ("first" if self.kind == "transformer" else "random")
        for part in removal.replacements:
            networks[str(part.start)] = build_network(blocks[part.start], dense, part, start_from)
        return networks
