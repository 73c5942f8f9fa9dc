"""All that a sweep's files tell of its frontier: the summary, and beside it analysis, certified gap and prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.frontier.analysis import FrontierAnalysis, analyse
from orchestrator.frontier.bounds import Bounds, Box, FrontierPoint, Mixing, UpperBound
from orchestrator.frontier.sampled import REPLICATES
from orchestrator.frontier.summary import FrontierSummary, plain
from orchestrator.frontier.trials import Trials
from orchestrator.plan import labels, settings_apart
from orchestrator.report.answered import answers
from orchestrator.report.spent import spent
from orchestrator.report.status import failures, watched
from orchestrator.report.sweep import any_config, read_baseline, read_plan, read_solver, read_spec, summary_of
from orchestrator.results.store import SweepStore

FloatArray = NDArray[np.float64]

_READ = 1000
"""Trials up to which their histories are read."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What ``cdsweep frontier`` shows of one sweep."""

    summary: FrontierSummary
    analysis: FrontierAnalysis | None
    """None where nothing has succeeded yet."""
    certified: Mapping[str, Any] | None
    """The last row of ``bounds.parquet``: the gap of a certified search, and where it is."""
    prediction: Mapping[str, Any] | None
    """The preview again, with the samples of finished trials; None for exact problems."""
    certificates: Sequence[Mapping[str, Any]] | None = None
    """What path weights prove at each combination of thresholds, and what the gap there is made of; None without."""
    failures: Sequence[Mapping[str, Any]] = ()
    """Trials that failed or are infeasible, with the reason."""
    watched: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By trial, what moved by more than 1 σ though nothing is trained on it."""
    judges: Sequence[str] = ()
    """Rewards that are measured and never trained on, as the spec has them."""
    spent: str | None = None
    """What the budget bought, in words; None without one."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """What each planned trial was asked for, whatever its seed, by its id."""

    apart: Mapping[str, Mapping[str, int | str]] = field(default_factory=dict)
    """By trial of the method ``frontier``, the settings in which such trials differ."""
    answers: Sequence[Mapping[str, Any]] = ()
    """What trials for a box of thresholds were measured at, see ``answered.answers``; none of a composition."""

    def to_json(self) -> dict[str, Any]:
        """The document of ``cdsweep frontier --json`` and ``cdsweep run --json``."""
        document = self.summary.to_json()
        certified = self.certified
        # The exact optimum says more than bounds, those that hold more than estimates, and estimates over the box more
        # than a prediction at the trials.
        exact = self.summary.bound is not None and self.summary.bound.kind == "proven"
        if (worst := self.worst) is not None and not exact:
            document["bound"] = {
                name: worst[name] for name in ("gap", "kind", "lower", "upper", "thresholds")
            }
        elif certified is not None and certified["gap"] is not None and not exact:
            document["bound"] = dict(certified)
        document["certified"] = None if certified is None else dict(certified)
        document["certificates"] = plain(self.certificates)
        document["analysis"] = None if self.analysis is None else self.analysis.to_json()
        document["prediction"] = plain(self.prediction)
        document["judges"] = list(self.judges)
        document["watched"] = {name: list(lines) for name, lines in self.watched.items()}
        document["spent"] = self.spent
        document["answers"] = [dict(answer) for answer in self.answers]
        document["failures"] = [dict(failure) for failure in self.failures]
        return document

    @property
    def worst(self) -> Mapping[str, Any] | None:
        """The certificate with the largest gap; None where no mixture is sure to reach any thresholds."""
        known = [found for found in self.certificates or () if np.isfinite(found["gap"])]
        return max(known, key=lambda found: float(found["gap"]), default=None)


def read_outcome(store: SweepStore) -> Outcome:
    """Read and analyse what has finished so far."""
    plan, baseline = read_plan(store), read_baseline(store)
    ended = store.trials()
    trials = Trials.of(ended, any_config(plan))
    # The bootstrap is for the intervals of the prediction.
    solver = read_solver(store, trials.config, baseline, trials, replicates=REPLICATES)
    summary = summary_of(plan, trials, baseline, solver)
    analysis = None
    if len(summary.points):
        analysis = analyse(
            replace(trials, tightest=summary.trials.tightest),
            baseline=baseline,
            history=_history(store, trials),
            exact=solver,
            mixing=mixtures(summary) if summary.sought else None,
        )
    configs = [trial.config for trial in plan.trials if trial.config.method == "constrained"]
    prediction = None if solver is None else solver.forecast(configs, baseline)
    spec = read_spec(store)
    return Outcome(
        summary=summary,
        analysis=analysis,
        certified=_certified(store.bounds()),
        prediction=prediction,
        certificates=None if solver is None else solver.certified(configs, baseline),
        failures=failures(ended),
        watched=watched(ended),
        judges=tuple(judge.label for judge in spec.rewards),
        spent=spent(spec, store),
        settings={name: label.rpartition(" seed ")[0] for name, label in labels(plan.trials).items()},
        apart=settings_apart(plan.trials),
        answers=() if summary.composed else answers(store, plan),
    )


def mixtures(summary: FrontierSummary) -> Mixing:
    """Return what mixing models reaches: the upper bound of ``frontier.bounds``."""
    known = [summary.baseline.rewards[name] for name in summary.sought]
    low = np.array([reward.mean for reward in known])
    box = Box(low=low, high=low + np.array([reward.std for reward in known]))  # it sets the scale alone

    def upper(kl: FloatArray, rewards: FloatArray) -> UpperBound:
        points = [FrontierPoint(rewards=row, kl=cost) for row, cost in zip(rewards, kl.tolist(), strict=True)]
        return Bounds(points, box).upper

    return upper


def _history(store: SweepStore, trials: Trials) -> pa.Table | None:
    """Only where prices have no other noise: one seed, and few enough trials to read every step of."""
    constrained = trials.of_method("constrained")
    single = len(np.unique(constrained.seeds)) <= 1
    return store.history() if single and len(constrained) <= _READ else None


def _certified(table: pa.Table | None) -> dict[str, Any] | None:
    """The last row of the bounds."""
    if table is None or not table.num_rows:
        return None
    row: dict[str, Any] = table.slice(table.num_rows - 1).to_pylist()[0]
    thresholds = {
        name.removeprefix("threshold_"): row.pop(name) for name in list(row) if name.startswith("threshold_")
    }
    return row | {"thresholds": thresholds}
