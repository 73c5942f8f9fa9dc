"""``cdsweep pick``: the finished trial, or mixture of trials, that meets what is asked at the least KL.

All that is asked, thresholds and a budget, has to hold at 95 % confidence, together: one-sided bounds as those that
make a trial feasible in training, and at the figure that is asked for, without a tolerance.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import UsageError
from orchestrator.frontier.bounds import (
    FrontierPoint,
    Mixture,
    OutOfReachError,
    alone,
    pick,
    pick_within,
    points_of,
    pretrained_point,
)
from orchestrator.frontier.feasibility import joint_deviations
from orchestrator.frontier.problems import BoundKind, LeastKL
from orchestrator.frontier.sampled import PRETRAINED
from orchestrator.frontier.trials import Trials
from orchestrator.spec import suggestion
from trainers.config import BaselineStatistics, TrialConfig

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What a trial for a box of thresholds answers to those that are asked for."""

    trial_id: str
    multipliers: Mapping[str, float]
    """By constraint, nats per reward unit."""
    point: FrontierPoint
    held: Mapping[str, float] = field(default_factory=dict)
    """Thresholds by reward, reward units, that it was found to hold: those that were asked for together, and its
    others at their loosest less their tolerance."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Picked:
    """What was picked, with names."""

    rewards: tuple[str, ...]
    ids: tuple[str, ...]
    """Of all candidates; the first is ``pretrained``."""
    mixture: Mixture
    prices: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """By place, of trials for a box of thresholds: the multipliers that they are asked for, nats per reward unit."""
    proven: tuple[float, BoundKind] | None = None
    """Lower bound on the least KL at the thresholds, nats, that is not the trials' tangents; None without one."""

    def to_json(self) -> dict[str, Any]:
        """Return the document of ``cdsweep pick``."""
        found = self.mixture
        bound, kind = (found.lower_bound, "estimated") if self.proven is None else self.proven

        def named(values: FloatArray) -> dict[str, float]:
            return dict(zip(self.rewards, values.tolist(), strict=True))

        return {
            "kl": found.kl,
            "kl_low": found.kl_low,
            "kl_high": found.kl_high,
            "kl_bound": found.kl_bound,
            "rewards": named(found.rewards),
            "rewards_low": named(found.rewards_low),
            "rewards_high": named(found.rewards_high),
            "rewards_bound": named(found.rewards_bound),
            "thresholds": {
                name: bound for name, bound in named(found.thresholds).items() if np.isfinite(bound)
            },
            "mixture": [
                {"trial_id": self.ids[member], "probability": probability}
                | ({"multipliers": dict(self.prices[member])} if member in self.prices else {})
                for member, probability in zip(found.members, found.probabilities, strict=True)
            ],
            "lower_bound": bound,
            "lower_bound_kind": kind,
            "tangent": found.lower_bound,
            "excess": found.kl - bound,
        }


def picked(
    trials: Trials,
    baseline: BaselineStatistics,
    pretrained: Mapping[str, tuple[float, float]],
    *,
    at_least: Mapping[str, float],
    kl_at_most: float | None = None,
    mix: bool = True,
    least: LeastKL | None = None,
    answers: Sequence[Measured] = (),
) -> Picked:
    """Pick among finished trials and the pretrained model.

    Args:
        trials: Finished ones.
        baseline: σ of the rewards, in which improvements within a budget are compared.
        pretrained: Mean and standard error of the pretrained model's rewards on the held-out prompts.
        at_least: Thresholds by reward, reward units.
        kl_at_most: A budget, nats; within it the reward that the sweep maximises is improved, or all sought rewards and
            those named by ``at_least`` together where it minimises a KL.
        mix: Whether to mix trials.
        least: What bounds the KL of any model from below, if it does better than the trials' own tangents.
        answers: Of trials for a box of thresholds. One that costs less than what is picked otherwise, or within a
            budget improves more, is taken alone; bounds are then those of all thresholds that it holds.

    Raises:
        UsageError: An unknown reward, nothing asked, nothing finished, or nothing that meets it.
    """
    names = tuple(trials.rewards)
    check_rewards(at_least, names)
    if not at_least and kl_at_most is None:
        raise UsageError("say what is wanted: --at-least REWARD=VALUE, --kl-at-most NATS, or both")
    if kl_at_most is not None and not 0 <= kl_at_most < np.inf:
        raise UsageError(f"a KL budget is a finite number of nats, at least 0, got {kl_at_most:g}")
    found_points = candidates(trials, pretrained)
    if len(found_points) == 1:
        raise UsageError("no trial of this sweep has finished yet, so there is nothing to pick from")
    points = [point for _, point in found_points]
    thresholds = np.array([at_least.get(name, -np.inf) for name in names])
    deviations = joint_deviations(len(at_least) + (kl_at_most is not None))
    asked = [answer.point for answer in answers]
    try:
        if kl_at_most is None:
            ways = _ways(points, asked, partial(pick, thresholds=thresholds, deviations=deviations), mix=mix)
            found = _as_held(
                min(ways, key=lambda mixture: mixture.kl), (*points, *asked), answers, names, thresholds
            )
        else:
            wished = improved(trials, at_least)
            sought = np.array([name in wished for name in names])
            improve = np.where(sought, [baseline.rewards[name].std for name in names], 0.0)
            start = points[0].rewards
            within = partial(
                pick_within,
                kl_budget=kl_at_most,
                start=start,
                improve=improve,
                thresholds=thresholds,
                deviations=deviations,
            )

            def gained(mixture: Mixture) -> tuple[float, float]:
                gains = (mixture.rewards_bound - start)[sought] / improve[sought]
                return float(gains.min()), -mixture.kl

            found = max(_ways(points, asked, within, mix=mix), key=gained)
    except OutOfReachError as error:
        raise UsageError(_missed(error, names, [name for name, _ in found_points], mix=mix)) from error
    boxed = {trial.trial_id: trial.multipliers for trial in trials.of_method("frontier")}
    wanted = {
        name: bound
        for name, bound in zip(names, found.thresholds.tolist(), strict=True)
        if np.isfinite(bound)
    }
    return Picked(
        rewards=names,
        ids=(*(name for name, _ in found_points), *(answer.trial_id for answer in answers)),
        mixture=found,
        prices={place: boxed[name] for place, (name, _) in enumerate(found_points) if name in boxed}
        | {len(points) + place: answer.multipliers for place, answer in enumerate(answers)},
        proven=None if least is None else least.proven(wanted),
    )


def check_rewards(at_least: Mapping[str, float], names: Sequence[str]) -> None:
    """Check thresholds that are asked for, by reward.

    Raises:
        UsageError: There is no such reward, or one is not finite.
    """
    for name, bound in at_least.items():
        if name not in names:
            raise UsageError(f"unknown reward {name!r}{suggestion(name, names, 'rewards of this sweep')}")
        if not np.isfinite(bound):
            raise UsageError(f"a threshold is a finite number, got {name}={bound:g}")


def _ways(
    points: Sequence[FrontierPoint],
    answers: Sequence[FrontierPoint],
    take: Callable[..., Mixture],
    *,
    mix: bool,
) -> list[Mixture]:
    """Return what is taken among points, and among them and answers each alone; these have the places after them.

    Raises:
        OutOfReachError: Neither reaches what is asked.
    """
    found, missed = [], []
    for among, mixed in ((points, mix), ((*points, *answers), False)) if answers else ((points, mix),):
        try:
            found.append(take(among, mix=mixed))
        except OutOfReachError as error:
            missed.append(error)
    if not found:
        raise missed[0]
    return found


def _as_held(
    found: Mixture,
    points: Sequence[FrontierPoint],
    answers: Sequence[Measured],
    names: Sequence[str],
    thresholds: FloatArray,
) -> Mixture:
    """Return what is picked at all thresholds that it was found for: more than were asked for, if it is an answer."""
    place = found.members[0] - (len(points) - len(answers))
    if place < 0 or not answers[place].held:
        return found
    held = np.maximum(thresholds, [answers[place].held.get(name, -np.inf) for name in names])
    deviations = joint_deviations(int(np.isfinite(thresholds).sum()))
    return alone(points, found.members[0], held, deviations=deviations)


def improved(trials: Trials, at_least: Iterable[str]) -> set[str]:
    """Return the rewards that a KL budget buys more of: the one that is maximised, else all that are sought."""
    if trials.config.objective.kind == "reward":
        return {trials.config.objective.target}
    return {*trials.sought, *at_least} or set(trials.rewards)


def candidates(
    trials: Trials, pretrained: Mapping[str, tuple[float, float]]
) -> list[tuple[str, FrontierPoint]]:
    """Return id and point of what can be picked: the pretrained model, then every trial that has figures."""
    coordinates = [(_constraint(trials.config, name), name) for name in trials.rewards]
    found = zip(trials.ids, points_of(trials, coordinates), strict=True)
    return [
        (PRETRAINED, pretrained_point(pretrained, coordinates)),
        *((name, point) for name, point in found if point is not None),
    ]


def _missed(error: OutOfReachError, names: Sequence[str], ids: Sequence[str], *, mix: bool) -> str:
    if error.kl is not None:
        return (
            f"these thresholds need {error.kl:.3g} nats with the trials that have finished, above the budget, both "
            "at 95 % confidence"
        )
    found, missing = error.nearest, error.missing
    assert found is not None, "something always comes nearest"
    assert missing is not None, "and falls short"
    whom = ", ".join(
        f"{ids[member]} ({share:.0%})" if len(found.members) > 1 else ids[member]
        for member, share in zip(found.members, found.probabilities, strict=True)
    )
    short = "; ".join(
        f"{name} by {gap:.4g} ({estimate:.4g} measured, at least {bound:.4g} at 95 % confidence)"
        for name, gap, estimate, bound in zip(names, missing, found.rewards, found.rewards_bound, strict=True)
        if gap > 0
    )
    what = "no finished trial, and no mixture of them," if mix else "no finished trial"
    return f"{what} reaches these thresholds; the nearest misses {short}: {whom}"


def _constraint(config: TrialConfig, reward: str) -> str:
    """Return the constraint on a reward, whose multiplier is its price; the reward's own name without one."""
    return next((c.name for c in config.constraints if c.kind == "reward" and c.target == reward), reward)
