"""The units in which thresholds were written, in which figures show rewards too."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.plan import unit_of
from trainers.config import BaselineStatistics, TrialConfig

MARKS = {"sigma": "σ", "relative": " relative", "absolute": "", "nats": " nats"}
"""What stands behind a number."""
_TITLES = {
    "sigma": "σ above the pretrained mean",
    "relative": "relative to the pretrained mean",
    "absolute": "reward units",
    "nats": "nats",
}


@dataclass(frozen=True)
class Written:
    """A unit: where its 0 is, and its size, both in reward units (nats for a KL)."""

    unit: str = "absolute"
    origin: float = 0.0
    size: float = 1.0

    def of(self, value: Any) -> Any:
        """Return values in this unit, from reward units."""
        return (value - self.origin) / self.size

    def back(self, value: Any) -> Any:
        """Return values in reward units, from this unit."""
        return self.origin + value * self.size

    def say(self, value: float) -> str:
        """Return a threshold as it was written."""
        return f"{self.of(value):.3g}{MARKS[self.unit]}".replace("-", "−")

    def title(self, name: str) -> str:
        """Return the label of an axis of values."""
        return f"{name} ({_TITLES[self.unit]})"


ABSOLUTE = Written()


@dataclass(frozen=True)
class Units:
    """Units by name; reward units for what has no threshold, or thresholds in several units."""

    rewards: Mapping[str, Written] = field(default_factory=dict)
    constraints: Mapping[str, Written] = field(default_factory=dict)

    def of_reward(self, name: str) -> Written:
        """Return the unit of all thresholds on a reward."""
        return self.rewards.get(name, ABSOLUTE)

    def of_constraint(self, name: str) -> Written:
        """Return the unit of one threshold."""
        return self.constraints.get(name, ABSOLUTE)


def units_of(config: TrialConfig, baseline: BaselineStatistics) -> Units:
    """Return the units of a sweep."""
    return units_in(unit_records(config, baseline))


def unit_records(config: TrialConfig, baseline: BaselineStatistics | None) -> list[dict[str, Any]]:
    """Return name, kind, target and unit of every constraint, and ``origin`` and ``size`` of the unit."""
    found = []
    for constraint in config.constraints:
        origin, size = (None, None) if baseline is None else unit_of(constraint, baseline)
        record = {name: getattr(constraint, name) for name in ("name", "kind", "target", "unit")}
        found.append({**record, "origin": origin, "size": size})
    return found


def units_in(constraints: Iterable[Mapping[str, Any]]) -> Units:
    """Return the units of the constraints of a report's document."""
    named: dict[str, Written] = {}
    by_reward: dict[str, set[Written]] = {}
    for constraint in constraints:
        known = bool(constraint.get("size"))  # not without a baseline, nor relative to a mean of 0
        unit = Written(constraint["unit"], constraint["origin"], constraint["size"]) if known else ABSOLUTE
        named[constraint["name"]] = unit
        if constraint["kind"] == "reward":
            by_reward.setdefault(constraint["target"], set()).add(unit)
    agreed = {name: found.pop() for name, found in by_reward.items() if len(found) == 1}
    return Units(rewards=agreed, constraints=named)
