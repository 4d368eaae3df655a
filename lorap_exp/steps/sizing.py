"""The ratios at which a method may meet what is asked, from its plans alone; no weight is read."""

from bisect import bisect_left

import torch

from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.methods.stack import build_stack
from lorap_exp.models.sizes import planned_bytes
from lorap_exp.planning.edits import Plan
from lorap_exp.schema.method import MethodConfig
from lorap_exp.steps.prepare import Basis, plan_method

COARSE = 100
"""Ratios that are tried for a perplexity are multiples of 1 / COARSE."""
FINE = 100_000
"""Ratios that are found for a size are multiples of 1 / FINE."""


def ratios_of(cfg: Config, method: MethodConfig, basis: Basis) -> list[float]:
    """What may be tried, ascending: the ratio that was asked for or that gives the bytes, or every
    ratio with a plan of its own where a perplexity is asked for.

    Raises:
        LorapError: there is none.
    """
    if cfg.ratio is not None:
        _plan(cfg, method, basis, cfg.ratio)
        return [cfg.ratio]
    plans = coarse_plans(cfg, method, basis)
    if cfg.target.bytes is None:
        return list(plans)
    return [_ratio_for_bytes(cfg, method, basis, plans, cfg.target.bytes)]


def coarse_plans(cfg: Config, method: MethodConfig, basis: Basis) -> dict[float, Plan]:
    """Ratio -> plan, for multiples of 1 / COARSE that have one; of equal plans the largest ratio.

    Raises:
        LorapError: there is none.
    """
    found: dict[tuple[object, ...], tuple[float, Plan]] = {}
    refusal: LorapError | None = None
    for number in range(1, COARSE):
        ratio = number / COARSE
        try:
            plan = _plan(cfg, method, basis, ratio)
        except LorapError as error:
            refusal = error
        else:
            found[plan.edits] = (ratio, plan)
    if not found:
        assert refusal is not None
        raise refusal
    return dict(found.values())


def bytes_of(cfg: Config, basis: Basis, plan: Plan) -> int:
    """Bytes of the saved model of a plan."""
    return planned_bytes(plan, basis.model_config, getattr(torch, cfg.dtype), cfg.export)


def _plan(cfg: Config, method: MethodConfig, basis: Basis, ratio: float) -> Plan:
    own = cfg.chosen(method, ratio)
    return plan_method(own, build_stack(method), basis.model_config, basis.dense)[1]


def _ratio_for_bytes(
    cfg: Config, method: MethodConfig, basis: Basis, plans: dict[float, Plan], target: int
) -> float:
    """The least ratio whose plan has at most the bytes."""
    ratios = list(plans)
    smallest = bytes_of(cfg, basis, plans[ratios[-1]])
    if smallest > target:
        raise LorapError(
            f"target.bytes must lie in [{smallest}, {bytes_of(cfg, basis, Plan(0.0))}) for "
            f"{method.name}, got {target}"
        )
    at = bisect_left(ratios[:-1], True, key=lambda r: bytes_of(cfg, basis, plans[r]) <= target)

    def fits(number: int) -> bool:
        try:
            return bytes_of(cfg, basis, _plan(cfg, method, basis, number / FINE)) <= target
        except LorapError:  # less than the least that the method can take off
            return False

    low = ratios[at - 1] if at > 0 else 0.0
    numbers = range(round(low * FINE) + 1, round(ratios[at] * FINE))
    return (numbers.start + bisect_left(numbers, True, key=fits)) / FINE
