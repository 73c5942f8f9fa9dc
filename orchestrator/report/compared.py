"""Two sweeps side by side: the KL that the same setting took in each, over their seeds."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from orchestrator.frontier.feasibility import TWO_SIDED
from orchestrator.frontier.trials import Trials
from orchestrator.report.outcome import Outcome


@dataclass(frozen=True, kw_only=True)
class SettingKL:
    """What the trials of one setting came to in one sweep."""

    kl: float
    """Mean over the seeds, nats."""
    error: float
    """Its standard error: of the seeds' spread, and never below that of the evaluations."""
    seeds: int
    feasible: int
    """Seeds whose trial is feasible."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One setting in two sweeps."""

    setting: str
    """Method, thresholds or weights."""
    sweeps: tuple[str, str]
    first: SettingKL
    second: SettingKL

    @property
    def difference(self) -> float:
        """KL of the second less that of the first, nats."""
        return self.second.kl - self.first.kl

    @property
    def error(self) -> float:
        """Standard error of the difference, as of two independent samples."""
        return float(np.hypot(self.first.error, self.second.error))

    @property
    def verdict(self) -> str:
        """Which took less, where the difference is beyond chance at 95 %."""
        if abs(self.difference) <= TWO_SIDED * self.error:
            return "not told apart"
        return f"{self.sweeps[self.difference < 0]} takes less"

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            **asdict(self),
            "sweeps": list(self.sweeps),
            "difference": self.difference,
            "error": self.error,
            "verdict": self.verdict,
        }


def compared(sweeps: Sequence[tuple[str, Outcome]]) -> list[Compared]:
    """Compare the first sweep with each of the others, each by its name, by the settings that both have finished."""
    first, *others = [(name, _settings(outcome)) for name, outcome in sweeps]
    return [
        Compared(setting=setting, sweeps=(first[0], name), first=known, second=settings[setting])
        for name, settings in others
        for setting, known in first[1].items()
        if setting in settings
    ]


def _settings(outcome: Outcome) -> dict[str, SettingKL]:
    """Return the settings of a sweep that have succeeded, by what tells them apart."""
    trials = outcome.summary.trials
    trials = trials.take(trials.succeeded)
    names = np.array([outcome.settings.get(trial_id) for trial_id in trials.ids], dtype=object)
    return {label: _mean(trials.take(names == label)) for label in dict.fromkeys(names) if label is not None}


def _mean(trials: Trials) -> SettingKL:
    kl, errors = trials.kl.mean, trials.kl.error
    errors = errors[~np.isnan(errors)]
    evaluated = float(errors.mean()) if len(errors) else 0.0
    spread = float(kl.std(ddof=1)) if len(kl) > 1 else 0.0
    return SettingKL(
        kl=float(kl.mean()),
        error=max(spread, evaluated) / math.sqrt(len(kl)),
        seeds=len(kl),
        feasible=int(trials.feasible.sum()),
    )
