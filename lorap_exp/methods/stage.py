"""The contract of a stage, and the stack: plan first, then compress block by block."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from hydra.utils import get_class
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel

from lorap_exp.calibration.walk import Statistic, Statistics, walk
from lorap_exp.config import MethodConfig, explain
from lorap_exp.errors import LorapError
from lorap_exp.models.families import Block, blocks_of
from lorap_exp.planning.plan import BlockPlan, BlockShape, Plan, Price, Rule, assemble


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

    def compress(self, block: Block, plan: BlockPlan, statistics: Statistics) -> None:
        """Rewrite the block to the planned sizes."""
        ...


def build_stages(method: MethodConfig) -> list[Stage]:
    """The stages of a stack in order; a null stage is left out.

    Raises:
        LorapError: a field that is unknown or out of range, or two stages with one target.
    """
    stages: list[Stage] = []
    owners: dict[str, str] = {}
    for name, settings in method.stages.items():
        if settings is None:
            continue
        fields = {key: value for key, value in settings.items() if key != "_target_"}
        try:
            stage = get_class(settings["_target_"])(**fields)
        except ValidationError as error:
            raise LorapError(explain(error, f"method.stages.{name}")) from error
        for target in stage.targets:
            if target in owners:
                raise LorapError(
                    f"method.stages: each matrix may have one stage, but {target} is a target of "
                    f"{owners[target]} and of {name}"
                )
            owners[target] = name
        stages.append(stage)
    return stages


def plan_stack(stages: Sequence[Stage], shapes: Sequence[BlockShape], ratio: float) -> Plan:
    """Sizes for every block: each stage takes `ratio` off the matrices it targets.

    Raises:
        LorapError: a ratio that no stage can reach.
    """
    if ratio > 0 and not stages:
        raise LorapError(f"ratio must be 0 for a method without stages, got {ratio}")
    sizes: list[tuple[Price, int | None]] = []
    for stage in stages:
        prices = [price for shape in shapes for price in stage.prices(shape)]
        try:
            allocated = stage.rule.allocate(prices, ratio) if ratio > 0 else [None] * len(prices)
        except ValueError as error:
            raise LorapError(f"ratio {ratio} cannot be planned: {error}") from error
        sizes += list(zip(prices, allocated, strict=True))
    return assemble(ratio, shapes, sizes)


def compress(
    model: PreTrainedModel,
    stages: Sequence[Stage],
    plan: Plan,
    *,
    ids: Tensor,
    batch_size: int,
    propagation: str,
    progress: Callable[[Sequence[Any]], Any] = iter,
) -> None:
    """Calibrate and compress every block of a dense model in place, in one walk."""
    wanted: dict[str, dict[str, Callable[[], Statistic]]] = {}
    for stage in stages:
        for name, makers in stage.statistics().items():
            wanted.setdefault(name, {}).update(makers)
    blocks = walk(model, ids, wanted, batch_size, propagation)
    for block_plan, (block, statistics) in zip(progress(plan.blocks), blocks, strict=True):
        for stage in stages:
            stage.compress(block, block_plan, statistics)


def shapes_of(model: PreTrainedModel) -> list[BlockShape]:
    """The compressible shapes of a dense model."""
    return [block.shape() for block in blocks_of(model)]
