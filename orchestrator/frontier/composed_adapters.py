"""Adapters that stand in the place of a composition: how near each is to every model, and which is nearest to all.

A trial that distils its composition has one, at its own weights; of the method ``frontier`` it has one at every weights
that it was evaluated at.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from trainers.config import TrialConfig
from trainers.types import UNKNOWN, Answer, Interval, largest

Row = Mapping[str, Any]
FRONTIER = "frontier"


@dataclass(frozen=True, kw_only=True)
class ComposedAdapter:
    """One adapter at weights of the models, measured by its own samples."""

    trial_id: str
    method: str
    weights: Mapping[str, float]
    """Of the models, on the simplex."""
    kls: Mapping[str, Interval]
    """To each model, nats; missing, or NaN, where it is not known."""
    rewards: Mapping[str, Interval]
    retention: Mapping[str, Interval] = field(default_factory=dict)
    """Share of each model's improvement that is kept, where that was measured."""

    @classmethod
    def of_answer(cls, trial_id: str, answer: Answer) -> Self:
        """Return what a trial for all weights was just measured to be."""
        return cls(
            trial_id=trial_id,
            method=FRONTIER,
            weights=answer.multipliers,
            kls=answer.constituents,
            rewards=answer.rewards,
            retention=answer.retention,
        )

    @property
    def unknown(self) -> list[str]:
        """Models to which the KL is not known."""
        return [name for name in self.weights if not np.isfinite(self.kls.get(name, UNKNOWN).mean)]

    @property
    def farthest(self) -> str:
        """The model that is farthest, of those that are known."""
        return max(self.kls, key=lambda name: self.kls[name].mean)

    def radius(self, offsets: Mapping[str, float]) -> float:
        """Return the largest KL to a model less its offset, nats: what a composition keeps least.

        Infinite where a KL is not known: the largest could be that.
        """
        if self.unknown:
            return np.inf
        return max(kl.mean - offsets.get(name, 0.0) for name, kl in self.kls.items())

    def to_json(self) -> dict[str, Any]:
        """Return plain data; figures are ``[mean, low, high]``, null where not known. All KLs are known."""

        def ends(figures: Mapping[str, Interval]) -> dict[str, list[float | None]]:
            return {name: found.ends for name, found in figures.items()}

        return {
            "trial_id": self.trial_id,
            "method": self.method,
            "multipliers": dict(self.weights),
            "farthest": self.farthest,
            "kl": self.kls[self.farthest].mean,
            "kls": ends(self.kls),
            "retention": ends(self.retention),
            "rewards": ends(self.rewards),
        }


def answer_of(config: TrialConfig, row: Row) -> Answer:
    """Return a stored answer of a trial for all weights."""
    names = [model.name for model in config.model.constituents]
    kls = _figures(row, "kl_", names)
    return Answer(
        thresholds={},
        multipliers={name: row[f"multiplier_{name}"] for name in names},
        kl=largest(kls.get(name, UNKNOWN) for name in names),
        rewards=_figures(row, "reward_", [reward.name for reward in config.rewards]),
        violations={},
        feasible=bool(row["feasible"]),
        images=row["images"],
        constituents=kls,
        retention=_figures(row, "retention_", names),
    )


def composed_adapters(
    config: TrialConfig, trials: Iterable[Row], answers: Iterable[Row]
) -> list[ComposedAdapter]:
    """Return all adapters of a sweep: those at design points, and those of trials at weights of their own.

    One whose KL to a model is not known is left out.

    Args:
        config: Of any trial of the sweep.
        trials: Their rows.
        answers: Rows of answers of those of the method ``frontier``; a trial that has not finished may have left some.
    """
    done = {row["trial_id"]: row for row in trials if row["status"] == "succeeded" and row["adapter"]}
    told = (
        ComposedAdapter.of_answer(row["trial_id"], answer_of(config, row))
        for row in answers
        if row["trial_id"] in done
    )
    found = [one for one in told if not one.unknown]
    names = [model.name for model in config.model.constituents]
    for row in done.values():
        if row["method"] == FRONTIER:
            continue
        kind = "weight" if row["method"] == "weighted" else "multiplier"
        kls = _figures(row, "distilled_kl_", names)
        if len(kls) == len(names):
            found.append(
                ComposedAdapter(
                    trial_id=row["trial_id"],
                    method=row["method"],
                    weights={name: row[f"{kind}_{name}"] for name in names},
                    kls=kls,
                    rewards=_figures(row, "distilled_reward_", [r.name for r in config.rewards]),
                )
            )
    return found


def nearest(config: TrialConfig, adapters: Sequence[ComposedAdapter]) -> ComposedAdapter:
    """Return the one whose farthest model is nearest, offsets counted; ties go to the first."""
    composition = config.model.composition
    assert composition is not None, "a composition"
    return min(adapters, key=lambda adapter: adapter.radius(composition.offsets))


def _figures(row: Row, before: str, names: Sequence[str]) -> dict[str, Interval]:
    """Return the figures of a row that are known, by name."""

    def end(name: str, end: str) -> float:
        value = row.get(f"{before}{name}{end}")
        return np.nan if value is None else float(value)

    found = {n: Interval(mean=end(n, ""), low=end(n, "_low"), high=end(n, "_high")) for n in names}
    return {name: figure for name, figure in found.items() if np.isfinite(figure.mean)}
