"""Remove the most redundant layers and train a lightweight replacement: LLM-Streamline.

arXiv 2403.19135. Layers are chosen on the original model (`selection`), and replaced by nothing, a
trained network (`networks`), or a linear map in closed form; the steps of the stack that follow
see a shorter model.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lorap_exp.calibration.evidence import Survey
from lorap_exp.calibration.probes import Asked
from lorap_exp.calibration.sampling import packed_windows, read_text
from lorap_exp.errors import LorapError
from lorap_exp.methods.contract import Carry, Step, Texts, Whole
from lorap_exp.methods.streamline.linear import Fit, linear_replacement, merge_linear_map
from lorap_exp.methods.streamline.networks import Initialisation, build_network, front_of
from lorap_exp.methods.streamline.selection import (
    CONTIGUOUS,
    PUBLISHED_PROTECTION,
    Criterion,
    LayerScores,
    Selection,
)
from lorap_exp.methods.streamline.training import Trainer, Training
from lorap_exp.models.families import blocks_of, family_of
from lorap_exp.models.layout import shortened
from lorap_exp.planning.edits import Drop, Edit, Insert
from lorap_exp.planning.shapes import BlockShape, Shape
from lorap_exp.planning.spans import divide, net_layers, span_length

TRAINED = ("ffn", "swiglu", "transformer")


@dataclass(frozen=True, config={"extra": "forbid"})
class LayerRemoval(Step):
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

    reach: ClassVar[Literal["block", "model"]] = "model"
    removes_layers: ClassVar[bool] = True

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
    def trains(self) -> bool:  # type: ignore[override]
        return self.replacement in TRAINED

    @property
    def needs_whole(self) -> str:
        return "trains the whole model" if self.trains else ""

    def check(self, config: PreTrainedConfig) -> None:
        """Raise unless the replacement fits the architecture."""
        normed_first = getattr(config, "do_layer_norm_before", True)  # not in OPT-350m
        plain = family_of(config).plain_residual and normed_first
        if self.replacement == "linear_merged" and not plain:
            raise LorapError(
                f"method.stages.layers.replacement must not be linear_merged for "
                f"'{config.model_type}' models that normalise the output of their MLP"
            )

    def survey(self, shape: Shape, edits: Sequence[Edit]) -> Iterable[Asked]:
        return [self._scores(len(removed(edits)))] if edits else []

    def _scores(self, length: int) -> LayerScores:
        return LayerScores(self.criterion, length, self.protected, self.start)

    def plan(
        self, shape: Shape, ratio: float, seen: Survey | None, alone: bool = True
    ) -> list[Edit]:
        """The layers to remove, as deep as they may be until they are chosen by evidence.

        Args:
            shape: of the incoming model, all layers alike.
            ratio: share of its weights to remove.
            seen: the scores of layers, or None.
            alone: nothing follows that could take up the rounding.

        Raises:
            ValueError: the model has too few layers for it, or nothing to inherit from.
        """
        blocks = shape.blocks
        self._check_inheritance(blocks[0])
        net = self.num_layers
        if net is None:
            budget = ratio * shape.parameters
            net = net_layers(blocks, budget, self.kind, self.count, exceed=alone)
        length = span_length(net, self.kind, self.count)
        first, last = self.protected
        room = len(blocks) - first - last
        if not 0 < length <= room or length == len(blocks):
            raise ValueError(
                f"the {length} layers to remove must fit into the {max(room, 0)} layers that are "
                f"not protected, and leave one"
            )
        start = len(blocks) - last - length if self.start is None else self.start
        if start < first or start + length > len(blocks) - last:
            raise ValueError(
                f"start must lie between {first} and {len(blocks) - last - length} for {length} "
                f"layers, got {self.start}"
            )
        if self.replacement == "linear_merged" and start == 0:
            raise ValueError("start must be at least 1 for replacement linear_merged, got 0")
        layers = tuple(range(start, start + length))
        if seen is not None:
            layers = Selection.restore(**seen.of(self._scores(length))).removed
        return self._edits(layers)

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

    def _edits(self, layers: tuple[int, ...]) -> list[Edit]:
        if self.kind == "none":
            return [Drop(layers)]
        residual = self.initialisation == "residual" and self.kind != "transformer"
        return divide(layers[0], layers[-1] + 1, self.kind, self.count, residual)

    def lengths(self) -> dict[str, int]:
        return {"training.length": self.training.length} if self.trains else {}

    def read(self, texts: Texts) -> Tensor | None:
        """Training windows (samples, length), the held-out ones first; None without training."""
        if not self.trains:
            return None
        wanted = self.training
        setting = "method.stages.layers.training"
        return packed_windows(
            read_text(wanted.text, wanted.split, texts.data, setting),
            texts.tokenizer,
            held_out=wanted.validation_samples,
            samples=wanted.samples,
            length=wanted.length,
            seed=wanted.seed,
            bos=texts.bos,
            setting=f"{setting}.samples x length",
        )

    def apply(
        self, part: Whole, edits: Sequence[Edit], seen: object, carry: Carry
    ) -> Sequence[Edit]:
        """Shorten the model; replacements are trained or fitted first."""
        if self.replacement == "none":
            part.model = shortened(part.model, edits, {})
        elif self.trains:
            self._train(part, edits)
        else:
            assert part.calibration is not None
            part.source.restart()
            given = (part.source, edits, part.calibration, part.how, self.ridge, self.fit)
            modules: dict[int, nn.Module] = {}
            if self.replacement == "linear_merged":
                merge_linear_map(*given)
            else:
                modules[removed(edits)[0]] = linear_replacement(*given)
            part.model = shortened(part.model, edits, modules)
        return edits

    def _train(self, part: Whole, edits: Sequence[Edit]) -> None:
        """Train the networks; the layers behind the span use no memory meanwhile."""
        assert isinstance(part.read, Tensor)
        dtype = part.model.dtype
        networks = self._networks(part.model, edits)
        trainer = Trainer(
            self.training,
            self.arrangement,
            windows=part.read,
            dtype=dtype,
            folder=part.folder,
            bars=part.bars,
        )
        for stage in self.training.stages:
            if stage == "lm":
                part.curves[stage] = trainer.predict(part.model, edits, networks)
                continue
            front = front_of(part.model, edits)
            part.release()
            part.curves[stage] = trainer.match(stage, front, networks)
            del front
        finished = {int(start): network.to(dtype) for start, network in networks.items()}
        part.model = shortened(part.model, edits, finished)

    def _networks(self, dense: PreTrainedModel, edits: Sequence[Edit]) -> nn.ModuleDict:
        """The networks to train, in float32, by the first layer that each stands for."""
        torch.manual_seed(self.training.seed)
        blocks, networks = blocks_of(dense), nn.ModuleDict()
        start_from = self.initialisation or ("first" if self.kind == "transformer" else "random")
        for part in (edit for edit in edits if isinstance(edit, Insert)):
            networks[str(part.start)] = build_network(blocks[part.start], dense, part, start_from)
        return networks


def removed(edits: Sequence[Edit]) -> tuple[int, ...]:
    """The layers that go, in order."""
    gone = [edit.layers for edit in edits if isinstance(edit, Drop | Insert)]
    return tuple(sorted(index for layers in gone for index in layers))
