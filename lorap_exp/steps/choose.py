"""The chooser: a method and a ratio from measured damage, within a budget of time, with the reason.

Each trial is a real, small job in the folder `trials`: compressed by the same engine and measured
on windows of the calibration text that no calibration window overlaps. What was measured is kept
in `choice.json` and is not measured again. A trial on all of the job's windows is the job's model
itself, and is taken over.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from lorap_exp.calibration.sampling import digest
from lorap_exp.config import Config, identity
from lorap_exp.errors import LorapError
from lorap_exp.models.digests import digest_tokenizer
from lorap_exp.planning.edits import Plan
from lorap_exp.reporting.choice import Choice, Trial
from lorap_exp.steps.prepare import Basis, calibration_ids, held_out_ids
from lorap_exp.steps.sizing import FINE, bytes_of, ratios_of
from lorap_exp.steps.trial import dense_perplexity, run_trial
from lorap_exp.workspace.digests import digest_json
from lorap_exp.workspace.job import Job
from lorap_exp.workspace.progress import say

ROUNDING = 1e-6
"""Of a ratio in floating point, in steps of it."""


def choose(cfg: Config, basis: Basis, job: Job) -> tuple[Config, Choice | None]:
    """The job with its method and ratio, and why; as it is where both were given.

    Raises:
        LorapError: a target that cannot be had, or no candidate that can run.
    """
    if not cfg.chooses:
        return cfg, None
    choice = Search(cfg, basis, job).run()
    say(f"  chosen: {choice.reason}\n{choice.table()}")
    return cfg.chosen(cfg.candidates[choice.method], choice.ratio), choice


def intention(cfg: Config) -> str:
    """What the chooser would try, for a dry run; empty where it has nothing to do."""
    if not cfg.chooses:
        return ""
    goals = {
        "target.bytes": f"at the ratio that gives at most {cfg.target.bytes} bytes",
        "target.perplexity": f"at the largest ratio with held-out perplexity at most "
        f"{cfg.target.perplexity}",
    }
    goal = goals.get(cfg.target.name or "", f"at ratio {cfg.ratio}")
    windows = cfg.choose.samples or cfg.calibration.samples
    limit = "" if cfg.choose.seconds is None else f", for {cfg.choose.seconds:g} s"
    return (
        f"; tries {', '.join(cfg.candidates)} {goal} on {windows} windows, "
        f"{cfg.choose.held_out} held out{limit}"
    )


class Search:
    """The trials of one job, measured or read back, and what follows from them."""

    def __init__(self, cfg: Config, basis: Basis, job: Job) -> None:
        self._cfg, self._basis, self._job = cfg, basis, job
        self._full = cfg.calibration.samples
        self._samples = cfg.choose.samples or self._full
        self._folder = job.folder / "trials"
        self._held = held_out_ids(cfg, basis)
        self._kept = job.under(
            {
                "model": basis.model_digest,
                "tokenizer": digest_tokenizer(basis.tokenizer),
                "texts": [digest(ids) for ids in (calibration_ids(cfg, basis), self._held)],
                "settings": digest_json(identity(cfg.dump())),
            }
        )
        self._dense: float | None = None
        self._trials: list[Trial] = []
        self._ratios: dict[str, list[float]] = {}
        self._left_out: dict[str, str] = {}

    def run(self) -> Choice:
        """The choice: as it was made before, else from trials; its model is taken over if saved."""
        raw = self._kept.read("choice.json", sealed=True) or {}
        if raw.get("choice") is not None:
            choice = Choice.from_dict(raw["choice"])
        else:
            self._trials = [Trial(**trial) for trial in raw.get("trials", ())]
            self._dense = raw.get("dense")
            choice = self._search()
        own = self._folder_of(choice.method, choice.ratio, self._full)
        if any(own.glob("group_*.json")):
            self._job.adopt(own)
        shutil.rmtree(self._folder, ignore_errors=True)
        return choice

    def _search(self) -> Choice:
        self._find_ratios()
        if self._dense is None:
            dense = dense_perplexity(self._cfg, self._basis, self._held, self._folder / "dense")
            self._dense = dense
            self._keep(None)
        asked = self._cfg.target.perplexity
        if asked is not None and asked < self._dense:
            raise LorapError(
                f"target.perplexity must be at least {self._dense:.4f}, the dense model's on the "
                f"held-out windows, got {asked}"
            )
        for name, own in self._ratios.items():
            if self._over():
                self._left_out[name] = "not tried: choose.seconds were used up"
            elif asked is not None:
                self._halve(name, own)
            else:
                self._fit(name, own[0], self._samples)
        best = self._best(self._samples)
        if best is None:
            raise LorapError(self._missed())
        settled = best
        if self._samples < self._full and self._cfg.target.name is not None:
            settled = self._fit(best.method, best.ratio, self._full)
        if not self._meets(settled):
            raise LorapError(f"{settled.method} at ratio {settled.ratio:g}: {settled.verdict}")
        choice = self._explain(best, settled)
        self._keep(choice)
        return choice

    def _missed(self) -> str:
        """Why no trial does what was asked."""
        found = [t for t in self._trials if t.perplexity is not None]
        lowest = min(found, key=lambda t: t.perplexity or 0.0, default=None)
        if self._cfg.target.perplexity is None or lowest is None:
            return self._reasons()
        return (
            f"target.perplexity must be at least {lowest.perplexity:.4f}, the lowest that was "
            f"reached ({lowest.method} at ratio {lowest.ratio:g}; dense {self._dense:.4f}), got "
            f"{self._cfg.target.perplexity}"
        )

    def _find_ratios(self) -> None:
        """The ratios that may be tried; a candidate without any is left out with its sentence."""
        cfg = self._cfg
        target = cfg.target.bytes
        if target is not None and target >= (dense := bytes_of(cfg, self._basis, Plan(0.0))):
            raise LorapError(
                f"target.bytes must be less than {dense}, the dense model in {cfg.dtype}, "
                f"got {target}"
            )
        for name, method in cfg.candidates.items():
            try:
                self._ratios[name] = ratios_of(cfg, method, self._basis)
            except LorapError as error:
                self._left_out[name] = str(error)
        if not self._ratios:
            raise LorapError(self._reasons())

    def _halve(self, name: str, ratios: Sequence[float]) -> None:
        """Near in on the largest ratio that meets the target, above the best that is known."""
        before = self._best(self._samples)
        ratios = [ratio for ratio in ratios if before is None or ratio > before.ratio]
        low, high = -1, len(ratios)
        while high - low > 1 and not (self._over() and low >= 0):
            middle = 0 if before is not None and low < 0 else (low + high) // 2
            if self._meets(self._trial(name, ratios[middle], self._samples)):
                low = middle
            else:
                high = middle

    def _fit(self, name: str, ratio: float, samples: int) -> Trial:
        """A trial that meets the target: the ratio moves on while one does not."""
        trial = self._trial(name, ratio, samples)
        while trial.perplexity is not None and not self._meets(trial):
            trial = self._trial(name, self._moved(trial), samples)
        return trial

    def _moved(self, trial: Trial) -> float:
        """The next ratio: up by the bytes that are too many, or one step down."""
        target = self._cfg.target.bytes
        if target is None:
            lower = (r for r in self._ratios[trial.method] if r < trial.ratio)
            return max(lower, default=0.0)
        assert trial.bytes is not None
        excess = (trial.bytes - target) / bytes_of(self._cfg, self._basis, Plan(0.0))
        return math.ceil((trial.ratio + max(1 / FINE, excess)) * FINE - ROUNDING) / FINE

    def _trial(self, name: str, ratio: float, samples: int) -> Trial:
        """A trial, once: measured, or as it was measured before."""
        for known in self._trials:
            if (known.method, known.ratio, known.samples) == (name, ratio, samples):
                return known
        cfg = self._cfg.chosen(self._cfg.candidates[name], ratio, samples)
        folder = self._folder_of(name, ratio, samples)
        trial = replace(run_trial(cfg, self._basis, self._held, folder), method=name)
        self._trials.append(trial)
        self._keep(None)
        if trial.perplexity is not None:
            say(f"  {name}: perplexity {trial.perplexity:.2f} held out, {trial.bytes:,} bytes")
        self._tidy()
        return trial

    def _tidy(self) -> None:
        """Remove the models of trials that cannot be the job's."""
        best = self._best(self._full)
        own = None if best is None else self._folder_of(best.method, best.ratio, self._full)
        for folder in self._folder.iterdir():
            if folder != own:
                shutil.rmtree(folder)

    def _folder_of(self, name: str, ratio: float, samples: int) -> Path:
        return self._folder / f"{name}-{ratio:g}-{samples}"

    def _keep(self, choice: Choice | None) -> None:
        measured = [trial for trial in self._trials if trial.perplexity is not None]
        trials = [asdict(trial) for trial in measured]
        made = None if choice is None else asdict(choice)
        self._kept.write("choice.json", {"dense": self._dense, "trials": trials, "choice": made})

    def _over(self) -> bool:
        """The time is used up, and something was found."""
        limit, spent = self._cfg.choose.seconds, sum(trial.seconds for trial in self._trials)
        return limit is not None and spent >= limit and self._best(self._samples) is not None

    def _meets(self, trial: Trial) -> bool:
        target = self._cfg.target
        if trial.perplexity is None or trial.bytes is None:
            return False
        if target.bytes is not None:
            return trial.bytes <= target.bytes
        return target.perplexity is None or trial.perplexity <= target.perplexity

    def _best(self, samples: int) -> Trial | None:
        """Of those that meet the target: the least perplexity, or the largest ratio."""
        found = [t for t in self._trials if t.samples == samples and self._meets(t)]
        return min(found, key=self._order, default=None)

    def _order(self, trial: Trial) -> tuple[float, float]:
        assert trial.perplexity is not None
        first = -trial.ratio if self._cfg.target.perplexity is not None else 0.0
        return first, trial.perplexity

    def _reasons(self) -> str:
        """Why each candidate is out; of a single one its own sentence."""
        said = self._left_out | {t.method: t.verdict for t in self._trials if t.verdict}
        return "; ".join(said.values() if len(said) == 1 else map(": ".join, said.items()))

    def _explain(self, best: Trial, settled: Trial) -> Choice:
        assert self._dense is not None
        rows = [replace(t, verdict=self._verdict(t, best, settled)) for t in self._trials]
        order = list(self._cfg.candidates)
        rows = sorted(rows, key=lambda trial: order.index(trial.method))
        shape = dict(zip(("samples", "length"), self._held.shape, strict=True))
        return Choice(
            asked=self._cfg.method.name,
            method=settled.method,
            ratio=settled.ratio,
            reason=self._reason(settled),
            dense=self._dense,
            held_out=shape | {"sha256": digest(self._held)},
            trials=tuple(rows),
            left_out=self._left_out,
        )

    def _verdict(self, trial: Trial, best: Trial, settled: Trial) -> str:
        if trial.verdict or (trial.method, trial.ratio) == (settled.method, settled.ratio):
            return trial.verdict or "chosen"
        if trial is best:
            return f"best; with all windows the ratio is {settled.ratio:g}"
        if not self._meets(trial):
            return f"does not meet {self._cfg.target.name}"
        return "smaller ratio" if self._cfg.target.perplexity is not None else "higher perplexity"

    def _reason(self, settled: Trial) -> str:
        target, count = self._cfg.target, len({trial.method for trial in self._trials})
        found = (
            f"perplexity {settled.perplexity:.2f} on {len(self._held)} held-out windows (dense "
            f"{self._dense:.2f})"
        )
        if settled.samples < self._full:
            found += f" after calibration on {settled.samples} windows"
        head = f"{settled.method} at ratio {settled.ratio:g}"
        among = f", the lowest of {count} candidates tried" if count > 1 else ""
        if target.bytes is not None:
            return f"{head}: {settled.bytes:,} of {target.bytes:,} bytes, {found}{among}"
        if target.perplexity is not None:
            return f"{head}: the largest ratio tried with at most {target.perplexity:g}: {found}"
        return f"{head}: {found}{among}"
