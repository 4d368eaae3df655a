"""The contract of a stage, and the stack: plan first, then compress block by block."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorap_exp.calibration.shared import Sharing, shared_walk
from lorap_exp.calibration.walk import Statistic, Statistics
from lorap_exp.config import MethodConfig, explain
from lorap_exp.data.instructions import Example
from lorap_exp.data.source import DataSource
from lorap_exp.errors import LorapError
from lorap_exp.methods.layer_removal import LayerRemoval
from lorap_exp.methods.targets import find_method_class
from lorap_exp.models.families import Block
from lorap_exp.planning.plan import NOTHING, BlockPlan, BlockShape, Plan, Price, Removal, assemble
from lorap_exp.planning.rules import Rule
from lorap_exp.training.loop import Curve


class Stage(Protocol):
    """A step of a method that rewrites some matrices of every decoder block.

    A stage names its prices and the rule that spends a budget on them; it never sees a ratio. It
    is a frozen dataclass whose fields are its configuration.
    """

    @property
    def targets(self) -> Sequence[str]:
        """Vocabulary names of the matrices that the stage rewrites."""
        ...

    @property
    def rule(self) -> Rule:
        """How prices and a ratio become sizes."""
        ...

    def prices(self, shape: BlockShape) -> list[Price]:
        """What each size of this block costs."""
        ...

    def statistics(self) -> Mapping[str, Mapping[str, Callable[[], Statistic]]]:
        """Statistics of the dense block's inputs: matrix -> name -> constructor."""
        ...

    def refine(self, block: Block, plan: BlockPlan, statistics: Statistics) -> BlockPlan:
        """Sizes of the dense block in view of its statistics, at most as many parameters."""
        ...

    def compress(self, block: Block, plan: BlockPlan, statistics: Statistics) -> None:
        """Rewrite the block to the planned sizes."""
        ...


class Recovery(Protocol):
    """The last step of a method: tune the compressed model."""

    def examples(
        self, tokenizer: PreTrainedTokenizerBase, data: DataSource, bos: int | None
    ) -> list[Example]:
        """Training examples, read and tokenised before any weight is loaded."""
        ...

    def recover(
        self,
        model: PreTrainedModel,
        plan: Plan,
        examples: Sequence[Example],
        folder: Path,
        progress: Callable[[Iterable[Any]], Iterable[Any]],
    ) -> tuple[PreTrainedModel, Plan, Curve]:
        """The tuned model, the plan with its sizes, and the loss curve."""
        ...


@dataclass(frozen=True)
class Stack:
    """A method: layers removed first, stages that rewrite what stays in one walk, a recovery."""

    stages: list[Stage]
    recovery: Recovery | None = None
    removal: LayerRemoval | None = None


def build_stack(method: MethodConfig) -> Stack:
    """The stack that a configuration names; a null stage is left out.

    Raises:
        LorapError: a field that is unknown or out of range, two stages with one target, or an
            order that cannot work.
    """
    stages: list[Stage] = []
    recovery: Recovery | None = None
    removal: LayerRemoval | None = None
    owners: dict[str, str] = {}
    for name, settings in method.stages.items():
        if settings is None:
            continue
        if recovery is not None:
            raise LorapError(f"method.stages: the recovery must come last, but {name} follows it")
        stage = _build(name, settings)
        if hasattr(stage, "recover"):
            recovery = stage
            continue
        if isinstance(stage, LayerRemoval):
            if removal is not None or stages:
                first = "another removal" if removal is not None else ", ".join(owners.values())
                raise LorapError(
                    f"method.stages: layers must be removed once and first, before sizes are "
                    f"planned for them and their inputs change, but {name} follows {first}"
                )
            removal = stage
            continue
        for target in stage.targets:
            if target in owners:
                raise LorapError(
                    f"method.stages: each matrix may have one stage, but {target} is a target of "
                    f"{owners[target]} and of {name}"
                )
            owners[target] = name
        stages.append(stage)
    return Stack(stages, recovery, removal)


def _build(name: str, settings: Mapping[str, Any]) -> Any:
    fields = {key: value for key, value in settings.items() if key != "_target_"}
    try:
        return find_method_class(settings.get("_target_"), f"method.stages.{name}._target_")(
            **fields
        )
    except ValidationError as error:
        raise LorapError(explain(error, f"method.stages.{name}")) from error
    except (TypeError, ValueError) as error:
        raise LorapError(f"method.stages.{name}: {error}") from error


def plan_method(
    stack: Stack,
    shapes: Sequence[BlockShape],
    ratio: float,
    *,
    protect: tuple[int, int] = (0, 0),
    whole: int | None = None,
    chosen: Removal | None = None,
) -> Plan:
    """The plan of a whole stack: layers first, then sizes that take off exactly the rest.

    Args:
        stack: the method.
        shapes: of the dense blocks.
        ratio: share of the weights to remove.
        protect: first and last of the blocks that stay which the stages leave dense.
        whole: as in `plan_stack`.
        chosen: the removal once layers are chosen; None plans for its size.

    Raises:
        LorapError: a ratio or a number of layers that cannot be had.
    """
    if stack.removal is not None and ratio == 0 and stack.removal.num_layers is not None:
        raise LorapError(
            f"ratio must be above 0 when method.stages.layers.num_layers is set, got 0 and "
            f"{stack.removal.num_layers}"
        )
    if stack.removal is None or ratio == 0:
        return plan_stack(stack.stages, shapes, ratio, protect=protect, whole=whole)
    if chosen is None:
        budget = ratio * (whole or sum(shape.parameters for shape in shapes))
        alone = not stack.stages
        try:
            part = 1.0 if alone else stack.removal.share
            chosen = stack.removal.plan(shapes, budget * part, alone=alone)
        except ValueError as error:
            raise LorapError(f"ratio {ratio} cannot be planned: {error}") from error
    if not stack.stages:
        if any(protect):
            raise LorapError(
                f"method.protect must be [0, 0] when layers are only removed, got {protect}; "
                f"method.stages.layers.protect keeps layers"
            )
        return assemble(ratio, chosen.remaining(shapes), [], chosen)
    return plan_stack(stack.stages, shapes, ratio, protect=protect, whole=whole, removal=chosen)


def plan_stack(
    stages: Sequence[Stage],
    shapes: Sequence[BlockShape],
    ratio: float,
    *,
    protect: tuple[int, int] = (0, 0),
    whole: int | None = None,
    removal: Removal = NOTHING,
) -> Plan:
    """Sizes for every block: each stage takes its part off the matrices it targets.

    Args:
        stages: the stack; no two stages share a matrix.
        shapes: of the dense blocks.
        ratio: share of the weights to remove.
        protect: number of first and last blocks that stay dense; the others pay for them.
        whole: count the ratio over this many parameters (the whole model) and take all of it
            off the targeted matrices; None counts over the targeted matrices, as LoRAP does, and
            over all matrices when layers are removed.
        removal: layers that are gone; the stages take off what is left of the ratio.

    Raises:
        LorapError: a ratio that no stage can reach.
    """
    if ratio == 0:
        return assemble(ratio, shapes, [])
    if not stages:
        raise LorapError(f"ratio must be 0 for a method without stages, got {ratio}")
    remaining = removal.remaining(shapes)
    blocks = [shape for shape in remaining if shape.matrices]
    if sum(protect) >= len(blocks):
        raise LorapError(
            f"method.protect must leave at least one of the {len(blocks)} blocks, got {protect}"
        )
    open_ = blocks[protect[0] : len(blocks) - protect[1]]
    targets = {name for stage in stages for name in stage.targets}

    def targeted(blocks: Sequence[BlockShape]) -> int:
        matrices = [m for shape in blocks for n, m in shape.matrices.items() if n in targets]
        return sum(matrix.parameters for matrix in matrices)

    if not targeted(open_):
        raise LorapError(f"ratio must be 0 when no stage has a target in this model, got {ratio}")
    gone = removal.parameters(shapes)
    counted = whole or (sum(s.parameters for s in shapes) if removal.layers else targeted(shapes))
    exact = counted == targeted(open_) and not gone
    effective = ratio if exact else (ratio * counted - gone) / targeted(open_)
    if effective < 0:
        raise LorapError(
            f"ratio must be at least {gone / counted:.4f}, the share that the removed layers take, "
            f"got {ratio}"
        )
    if not effective < 1:
        raise LorapError(
            f"ratio must leave something of the {targeted(open_)} weights that may change, "
            f"got {ratio} of {counted}"
        )
    sizes: list[tuple[Price, int | None]] = []
    nothing_left = gone > 0 and effective * targeted(open_) < 1
    for stage in () if nothing_left else stages:
        try:
            prices = [price for shape in open_ for price in stage.prices(shape)]
            allocated = stage.rule.allocate(prices, effective)
        except ValueError as error:
            raise LorapError(f"ratio {ratio} cannot be planned: {error}") from error
        sizes += list(zip(prices, allocated, strict=True))
    return assemble(ratio, remaining, sizes, removal)


def compress(
    model: PreTrainedModel,
    stages: Sequence[Stage],
    plan: Plan,
    *,
    ids: Tensor,
    batch_size: int,
    propagation: str,
    sharing: Sharing | None = None,
    progress: Callable[[Sequence[Any]], Any] = iter,
) -> Plan:
    """Calibrate and compress every block of a dense model in place, in one walk.

    With `sharing`, statistics and factorisations that other jobs can use go to a store.

    Returns:
        The plan as carried out: stages may refine a block's sizes, within its budget, from what
        calibration shows.
    """
    wanted: dict[str, dict[str, Callable[[], Statistic]]] = {}
    for stage in stages:
        for name, makers in stage.statistics().items():
            if makers:
                wanted.setdefault(name, {}).update(makers)
    done = []
    blocks = shared_walk(model, ids, wanted, batch_size, propagation, sharing=sharing)
    for block_plan, (block, statistics) in zip(progress(plan.blocks), blocks, strict=True):
        refined = block_plan
        acting = stages if block.family.matrices else ()
        for stage in acting:
            refined = stage.refine(block, refined, statistics)
        for stage in acting:
            stage.compress(block, refined, statistics)
        done.append(refined)
    return replace(plan, blocks=tuple(done))
