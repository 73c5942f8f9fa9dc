"""Two sweeps side by side: the KL that the same setting took in each, over their seeds."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from orchestrator.frontier.feasibility import TWO_SIDED
from orchestrator.plan import describe
from orchestrator.report.sweep import read_plan
from orchestrator.results.store import SweepStore


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


def compared(stores: Sequence[SweepStore]) -> list[Compared]:
    """Compare the first sweep with each of the others, by the settings that both have finished."""
    first, *others = [(store.name, _settings(store)) for store in stores]
    return [
        Compared(setting=setting, sweeps=(first[0], name), first=known, second=settings[setting])
        for name, settings in others
        for setting, known in first[1].items()
        if setting in settings
    ]


def _settings(store: SweepStore) -> dict[str, SettingKL]:
    """Return the settings of a sweep that have succeeded, by what tells them apart."""
    labels = {
        trial.trial_id: describe(trial.config).rpartition(" seed ")[0] for trial in read_plan(store).trials
    }
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in store.trials().to_pylist():
        if row["status"] == "succeeded" and row["kl"] is not None and row["trial_id"] in labels:
            found[labels[row["trial_id"]]].append(row)
    return {label: _mean(rows) for label, rows in found.items()}


def _mean(rows: Sequence[dict[str, Any]]) -> SettingKL:
    kl = np.array([row["kl"] for row in rows], dtype=np.float64)
    spans = [
        row["kl_high"] - row["kl_low"]
        for row in rows
        if row["kl_low"] is not None and row["kl_high"] is not None
    ]
    evaluated = float(np.mean(spans or [0.0])) / (2 * TWO_SIDED)
    spread = float(kl.std(ddof=1)) if len(kl) > 1 else 0.0
    return SettingKL(
        kl=float(kl.mean()),
        error=max(spread, evaluated) / math.sqrt(len(kl)),
        seeds=len(kl),
        feasible=sum(bool(row["feasible"]) for row in rows),
    )
