"""What a composition sweep came to: which trials are shown, how far from the exact optimum, and one sentence.

The objective of every trial is its largest KL to a model, so there is no front of trade-offs without rewards: of each
method the feasible trials are shown, or, where there is none, the one whose models are nearest.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from orchestrator.frontier.comparison.sentence import sentence
from orchestrator.frontier.trials import SMALL_KL, Measured, Trials

FloatArray = NDArray[np.float64]

_BASELINES = ("merged", "joint")
"""Samplers that are always named: they are one network."""


def shown(kl: FloatArray, feasible: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Rows of one method that its table has: the feasible ones, or the one with the least largest KL; ``[n]``."""
    if feasible.any() or not len(kl):
        return feasible
    nearest = np.zeros(len(kl), dtype=np.bool_)
    nearest[np.argmin(kl)] = True
    return nearest


# The sentence ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Trials that differ in their seed only; means over them."""

    method: str
    keys: Mapping[str, float]
    """Thresholds by constraint, or weights by model."""
    kls: Mapping[str, float]
    """To each model, nats."""
    kl: float
    """The largest of them, nats."""
    least: float | None
    """Exact, nats."""
    feasible: bool
    """In every seed."""
    sampler: str | None = None
    """Where it is not that of the constrained trials."""
    retention: Mapping[str, float] = field(default_factory=dict)
    """Of each model that is judged: the share of its improvement that is kept."""
    retention_error: Mapping[str, float] = field(default_factory=dict)
    """Their standard errors."""

    @property
    def least_retained(self) -> str:
        """The model that loses most."""
        return min(self.retention, key=lambda name: self.retention[name])

    @property
    def farthest(self) -> str:
        """The model that is farthest."""
        return max(self.kls, key=lambda name: self.kls[name])

    @property
    def label(self) -> str:
        """``equal weights``, or the weights of the models."""
        if self.sampler == "joint":
            return "one joint prompt"
        shares = list(self.keys.values())
        if shares and max(shares) - min(shares) < 1e-9:
            told = "equal weights"
        else:
            told = f"weights {', '.join(f'{name} {share:.2g}' for name, share in self.keys.items())}"
        return told if self.sampler is None else f"{told}, {self.sampler}"


def settings(points: Trials) -> tuple[Setting, ...]:
    """Return the settings of the trials that succeeded, constrained ones first, in the order of their keys.

    A trial of the method ``frontier`` finds the weights of the constrained one, and stands for it where there is none.
    """
    composition = points.config.model.composition
    assert composition is not None, "not a composition"
    named = {
        "constrained": points.thresholds,
        "weighted": {name: points.weights[name] for name in points.kls},
    }
    groups: dict[tuple[str, tuple[float, ...], str], list[int]] = {}
    methods = points.methods
    if not (methods == "constrained").any():
        methods = np.where(methods == "frontier", "constrained", methods)
    constrained = points.samplers[methods == "constrained"]
    usual = constrained[0] if len(constrained) else composition.sampler
    for row, method in enumerate(methods):
        if method in named:
            other = points.samplers[row] if points.samplers[row] != usual or usual in _BASELINES else None
            if composition.direction == "forward":
                other = None  # an OR has one way to be sampled
            key = (method, tuple(float(column[row]) for column in named[method].values()), other or "")
            groups.setdefault(key, []).append(row)
    least = points.least

    def retained(rows: list[int]) -> list[tuple[str, Measured]]:
        return [(name, kept) for name, kept in points.retention.items() if np.isfinite(kept.mean[rows]).all()]

    return tuple(
        Setting(
            method=method,
            keys=dict(zip(named[method], keys, strict=True)),
            kls={name: float(figure.mean[rows].mean()) for name, figure in points.kls.items()},
            kl=float(points.kl.mean[rows].mean()),
            least=None if np.isnan(least[rows]).any() else float(least[rows].mean()),
            feasible=bool(points.feasible[rows].all()),
            sampler=sampler or None,
            retention={name: float(kept.mean[rows].mean()) for name, kept in retained(rows)},
            retention_error={
                name: float(np.sqrt(np.square(kept.error[rows]).sum()) / len(rows))
                for name, kept in retained(rows)
            },
        )
        for (method, keys, sampler), rows in sorted(groups.items())
    )


def composed_sentence(found: Sequence[Setting], statuses: Counter[str], planned: int | None) -> str:
    """Say how near the constrained composition keeps its models, and what fixed weights do."""
    ours = [setting for setting in found if setting.method == "constrained"]
    rivals = [setting for setting in found if setting.method == "weighted"]
    if not ours:
        return sentence(
            cells=(),
            rivals=len(rivals),
            statuses=statuses,
            planned=planned,
            objective=None,
            ratios_to_exact=(),
        )
    finished = sum(statuses.values())
    progress = "" if planned is None or finished >= planned else f" (so far: {finished} of {planned} trials)"
    return f"{_ours(ours)}; {_rivals(ours, rivals)}{progress}.{_retained(ours, rivals)}"


def _retained(ours: Sequence[Setting], rivals: Sequence[Setting]) -> str:
    """Say what is left of the models' improvements, where that was measured."""
    told = [
        f"{'the constrained composition keeps' if setting.method == 'constrained' else f'{setting.label} keep'} at "
        f"least {setting.retention[setting.least_retained]:.0%} ({setting.least_retained})"
        for setting in (*ours[:1], *rivals[:2])
        if setting.retention
    ]
    return f" Of every model's improvement over the pretrained one, {', '.join(told)}." if told else ""


def _ours(ours: Sequence[Setting]) -> str:
    if len(ours) == 1:
        [one] = ours
        exact = "" if one.least is None else f" (exact least maximum {one.least:.2f})"
        missed = "" if one.feasible else ", but does not meet its thresholds"
        return f"The constrained composition keeps every model within {one.kl:.2f} nats{exact}{missed}"
    kls = [setting.kl for setting in ours]
    met = sum(setting.feasible for setting in ours)
    return (
        f"The constrained compositions met {met} of {len(ours)} threshold combinations and keep every model within "
        f"{min(kls):.2f} to {max(kls):.2f} nats"
    )


def _rivals(ours: Sequence[Setting], rivals: Sequence[Setting]) -> str:
    if not rivals:
        return "there are no weighted trials to compare with"
    meeting = [setting for setting in rivals if setting.feasible]
    thresholds = any(setting.keys for setting in ours)
    if thresholds and not meeting:
        return f"no weighted setting (of {len(rivals)} tried) met the loosest thresholds"
    best = min(meeting or rivals, key=lambda setting: setting.kl)
    label = best.label if len(rivals) == 1 else f"the best of {len(rivals)} weightings ({best.label})"
    verb = "leave" if len(rivals) == 1 and best.sampler != "joint" else "leaves"
    told = f"{label} {verb} {best.farthest} at {best.kl:.2f}"
    nearest = min(setting.kl for setting in ours)
    if nearest <= SMALL_KL:
        return told
    ratio = best.kl / nearest
    return f"{told}, {ratio:{'.2g' if 1.1 <= ratio < 99.5 else '.3g'}} times as far"
