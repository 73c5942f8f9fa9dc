"""What trials for a box of thresholds answer to those that are asked for, measured in this process."""

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from orchestrator.errors import StorageError, UsageError
from orchestrator.frontier.bounds import FrontierPoint, bounded
from orchestrator.frontier.feasibility import joint_deviations, standard_error
from orchestrator.plan import Plan, PlannedTrial, make_job
from orchestrator.report.answered import finished_boxes
from orchestrator.report.boxed_card import answer_files
from orchestrator.report.page.boxes import answered_point
from orchestrator.report.picked import Measured
from orchestrator.report.sweep import read_baseline
from orchestrator.results.digits import below
from orchestrator.results.schema import samples_of
from orchestrator.results.store import SweepStore
from orchestrator.spec import suggestion
from trainers.config import ConstraintConfig, TrialConfig
from trainers.types import Answer

if TYPE_CHECKING:
    from trainers.alignment.boxed.answering import Answering, Reply

Held = tuple[float | None, ...]
"""Standard errors by which each threshold has to hold; None: as a trial is feasible."""
MOST_POINTS = 256
"""Of a grid over a box."""


@dataclass(frozen=True, kw_only=True)
class Replied:
    """An answer of a trial, and the trial's residual, which samples it."""

    trial_id: str
    config: TrialConfig
    answering: "Answering"
    reply: "Reply"
    asked: frozenset[str] = frozenset()
    """Rewards whose thresholds were asked for; the others are held as a trial is feasible."""

    @property
    def multipliers(self) -> dict[str, float]:
        """Prices at which it answers, nats per reward unit, by constraint."""
        return dict(self.reply.answer.multipliers)

    @property
    def answer(self) -> Answer:
        """What was measured."""
        return self.reply.answer

    @property
    def at(self) -> dict[str, float]:
        """Thresholds that it is for, by constraint."""
        return dict(self.reply.answer.thresholds)

    @property
    def held(self) -> bool:
        """Whether it holds there."""
        return self.reply.held

    def measured(self, names: tuple[str, ...]) -> Measured:
        """Return it as something to pick, by its rewards of these names; it supports no tangent."""
        answer = self.reply.answer
        ends = [answer.rewards[name] for name in names]
        point = FrontierPoint(
            rewards=np.array([end.mean for end in ends]),
            kl=max(answer.kl.mean, 0.0),
            reward_errors=np.array([float(standard_error(end.low, end.high)) for end in ends]),
            kl_error=float(standard_error(answer.kl.low, answer.kl.high)),
        )
        held: dict[str, float] = {}
        allowed = {c.name: c.allowance for c in self.answering.frontier.lagrangian.constraints}
        for constraint in self.config.constraints:
            if constraint.kind == "reward":
                bound = answer.thresholds[constraint.name]
                if constraint.target not in self.asked:
                    bound -= allowed[constraint.name]
                held[constraint.target] = max(bound, held.get(constraint.target, bound))
        return Measured(trial_id=self.trial_id, multipliers=self.multipliers, point=point, held=held)

    def files(self) -> dict[str, bytes]:
        """Return the plain residual, or LoRA, that the trial's is at these multipliers, with its figures and a card."""
        return {
            **self.answering.policy.folded(self.reply.tilt),
            **answer_files(self.trial_id, self.config, self.reply.answer),
        }


class GridPoint(Protocol):
    """What a trial is at one point of a grid."""

    @property
    def answer(self) -> Answer:
        """What was measured there."""

    @property
    def at(self) -> Mapping[str, float]:
        """Where that is: thresholds by constraint, or weights by model."""

    @property
    def held(self) -> bool:
        """Whether it holds there."""

    def files(self) -> dict[str, bytes]:
        """Return the plain adapter, with its figures and a card."""


@dataclass(frozen=True, kw_only=True)
class Gridded:
    """The points of a grid, measured as they are asked for."""

    size: int
    found: Callable[[Collection[int]], Iterator[tuple[int, GridPoint]]]
    """Yields place and point, of these places, as each is found; of a place again where it is found to cost less."""


def unfit(row: Mapping[str, Any] | None, files: Mapping[str, bytes]) -> str | None:
    """Return why a trial, by its row and its adapter, answers nothing; None where it does."""
    if row is None:
        return "has not finished"
    if row["status"] != "succeeded":
        return "is infeasible" if row["status"] == "infeasible" else f"has {row['status']}"
    return None if files else "has left no network"


def opened(store: SweepStore, trial: PlannedTrial) -> "Answering":
    """Return what answers with a finished trial.

    Raises:
        UsageError: It has not finished, or failed.
        StorageError: What is stored of it cannot be read.
    """
    from trainers.alignment.boxed.stored import open_stored

    files = store.adapter(trial.trial_id)
    row = store.stored_trial(trial.trial_id)
    if (state := unfit(row, files)) is not None:
        raise UsageError(f"trial {trial.trial_id} {state}: it answers nothing")
    table = store.baseline_samples()
    reference = {} if table is None else samples_of(table, "evaluate")
    known = reference if any(len(values) for values in reference.values()) else None
    try:
        return open_stored(make_job(trial, read_baseline(store)), files, known)
    except ValueError as error:
        raise StorageError(f"the network of trial {trial.trial_id} cannot be used: {error}") from error


def answered(store: SweepStore, plan: Plan, trial_id: str, at_least: Mapping[str, float]) -> Replied:
    """Answer thresholds with a trial for a box of them, so that those asked for hold together at 95 % confidence.

    The others hold as a trial is feasible: each at one-sided 95 %, within its tolerance.

    Args:
        store: The sweep.
        plan: Its own.
        trial_id: Of the trial.
        at_least: By reward, reward units; a constraint that is not asked for stays at its loosest, and one that is
            asked for its loosest as messages print it, in four digits, too.

    Raises:
        UsageError: They lie outside the box, or are out of reach in it: says what is nearest, and its KL; or a reward
            has no constraint.
        StorageError: What is stored cannot be read.
    """
    trial = next(trial for trial in plan.trials if trial.trial_id == trial_id)
    places = {c.target: place for place, c in enumerate(trial.config.constraints) if c.kind == "reward"}
    for name, bound in at_least.items():
        if name not in places:
            hint = suggestion(name, list(places), "rewards with a threshold")
            raise UsageError(f"trial {trial_id} has no threshold on {name!r}{hint}")
        if not np.isfinite(bound):
            raise UsageError(f"a threshold is a finite number, got {name}={bound:g}")
    answering = opened(store, trial)
    box = answering.frontier.box
    asked = box.loosest.copy()
    for name, bound in at_least.items():
        loosest = asked[places[name]]
        asked[places[name]] = loosest if below(loosest) <= bound <= loosest else bound
    deviations = _held(trial.config, at_least)
    if not box.holds(asked):
        raise UsageError(_outside(trial, answering, asked, at_least, deviations))
    reply = answering.reply(box.clipped(asked), deviations=deviations)
    if not reply.held:
        raise UsageError(_missed(trial, answering, reply, asked, deviations))
    return Replied(
        trial_id=trial_id, config=trial.config, answering=answering, reply=reply, asked=frozenset(at_least)
    )


def _held(config: TrialConfig, asked: Collection[str]) -> Held:
    """Return how each constraint has to hold, where the thresholds of some rewards are asked for."""
    joint = joint_deviations(len(asked))
    return tuple(joint if c.kind == "reward" and c.target in asked else None for c in config.constraints)


def priced(store: SweepStore, plan: Plan, trial_id: str, multipliers: Mapping[str, float]) -> Replied:
    """Measure a trial for a box of thresholds at multipliers.

    Args:
        store: The sweep.
        plan: Its own.
        trial_id: Of the trial.
        multipliers: By constraint, as results have them (``Lagrangian.prices``); 0 for those that are left out.

    Raises:
        UsageError: One is negative, not a number, of no constraint, or beyond what the trial was trained for.
        StorageError: What is stored cannot be read.
    """
    trial = next(trial for trial in plan.trials if trial.trial_id == trial_id)
    names = [constraint.name for constraint in trial.config.constraints]
    for name, price in multipliers.items():
        if name not in names:
            raise UsageError(
                f"trial {trial_id} has no constraint {name!r}{suggestion(name, names, 'its constraints')}"
            )
        if not math.isfinite(price):
            raise UsageError(f"a multiplier is a finite number of at least 0, got {name}={price:g}")
    answering = opened(store, trial)
    lagrangian = answering.frontier.lagrangian
    found = lagrangian.multipliers(multipliers)
    for name, asked, most in zip(names, found.tolist(), answering.most.tolist(), strict=True):
        if not 0 <= asked <= most:
            price = multipliers.get(name, 0.0)
            raise UsageError(
                f"trial {trial_id} was trained for multipliers of {name} from 0 to "
                f"{below(price * most / asked):g}, got {price:g}"
            )
    return Replied(trial_id=trial_id, config=trial.config, answering=answering, reply=answering.at(found))


def gridded(store: SweepStore, plan: Plan, trial_id: str, count: int) -> Gridded:
    """Answer a grid of thresholds with a trial for a box of them; ``held``: those that move hold together.

    Args:
        store: The sweep.
        plan: Its own.
        trial_id: Of the trial.
        count: Values of every threshold that moves, its ends among them.

    Raises:
        UsageError: The grid has more points than ``MOST_POINTS``.
        StorageError: What is stored cannot be read.
    """
    trial = next(trial for trial in plan.trials if trial.trial_id == trial_id)
    answering = opened(store, trial)
    box = answering.frontier.box
    ends = zip(box.loosest.tolist(), box.tightest.tolist(), strict=True)
    axes = [np.linspace(low, high, count) if low != high else np.array([low]) for low, high in ends]
    points = math.prod(len(axis) for axis in axes)
    if points > MOST_POINTS:
        raise UsageError(
            f"--grid {count} has {points} points over {sum(len(axis) > 1 for axis in axes)} thresholds that move, and "
            f"each is measured: take one of at most {MOST_POINTS}"
        )
    moving = [trial.config.constraints[place] for place in box.moving]
    deviations = _held(trial.config, {c.target for c in moving if c.kind == "reward"})
    places = [np.array(place) for place in itertools.product(*axes)]

    def found(left: Collection[int]) -> Iterator[tuple[int, Replied]]:
        for place, reply in answering.improving(places, deviations=deviations, left=left):
            yield (
                place,
                Replied(trial_id=trial_id, config=trial.config, answering=answering, reply=reply),
            )

    return Gridded(size=points, found=found)


def of_sweep(store: SweepStore, plan: Plan, at_least: Mapping[str, float]) -> Iterator[Replied | UsageError]:
    """Answer thresholds with every trial for a box of them that has succeeded, or say why it does not."""
    for trial in finished_boxes(store, plan):
        try:
            yield answered(store, plan, trial.trial_id, at_least)
        except UsageError as error:
            yield error


def stored_answers(store: SweepStore, plan: Plan, names: tuple[str, ...]) -> Iterator[Measured]:
    """Yield what trials for a box that succeeded have answered, by rewards of these names; nothing is sampled."""
    for trial in finished_boxes(store, plan):
        table, named = store.answers(trial.trial_id), [c.name for c in trial.config.constraints]
        constrained = {target: name for name, target in bounded(trial.config)}
        for row, known in enumerate(table.to_pylist()):
            point = answered_point(table, row, names, constrained)
            prices = {name: known[f"multiplier_{name}"] for name in named}
            # Weights of a composition have no prices.
            if prices and None not in prices.values() and np.isfinite(point.rewards).all():
                alone = replace(point, multipliers=None, met=None)  # it supports no tangent, as one asked for
                yield Measured(trial_id=trial.trial_id, multipliers=prices, point=alone)


def _outside(
    trial: PlannedTrial,
    answering: "Answering",
    asked: np.ndarray,
    at_least: Mapping[str, float],
    deviations: Held,
) -> str:
    box = answering.frontier.box
    ends = [
        f"{c.name} from {_told(c, low)} to {_told(c, high)}"
        if low != high
        else f"{c.name} at {_told(c, low)}"
        for c, low, high in zip(trial.config.constraints, box.loosest, box.tightest, strict=True)
    ]
    given = ", ".join(f"{name}={bound:g}" for name, bound in at_least.items())
    return (
        f"{given} lies outside what trial {trial.trial_id} was trained for: {', '.join(ends)}; "
        f"{_nearest(trial, answering, asked, deviations)}"
    )


def _missed(
    trial: PlannedTrial, answering: "Answering", reply: "Reply", asked: np.ndarray, deviations: Held
) -> str:
    answer = reply.answer
    reached = ", ".join(
        f"{c.name} {answer.rewards[c.target].low:.4g}" for c in trial.config.constraints if c.kind == "reward"
    )
    prices = ", ".join(f"{name} {price:.4g}" for name, price in answer.multipliers.items())
    return (
        f"trial {trial.trial_id} does not reach these thresholds: at multipliers {prices} nats per unit it has at "
        f"least {reached}; {_nearest(trial, answering, asked, deviations, reply)}"
    )


def _nearest(
    trial: PlannedTrial,
    answering: "Answering",
    asked: np.ndarray,
    deviations: Held,
    missed: "Reply | None" = None,
) -> str:
    found = answering.nearest(asked, deviations=deviations, missed=missed)
    bounds, kl = found.answer.thresholds, found.answer.kl
    rewards = [c for c in trial.config.constraints if c.kind == "reward"]
    asked_for = {
        c.name for c, by in zip(trial.config.constraints, deviations, strict=True) if by is not None
    } or set(bounds)
    named = ", ".join(f"{c.target}={_told(c, bounds[c.name])}" for c in rewards if c.name in asked_for)
    if any(c.name not in asked_for for c in rewards):
        named += " (the others at their loosest, within their tolerance)"
    spent = f"a KL of {kl.mean:.3f} nats ({kl.low:.3f} to {kl.high:.3f})"
    if found.held:
        return f"the nearest inside is {named}, at {spent}"
    reached = ", ".join(
        f"{c.target} {found.answer.rewards[c.target].low:.4g}"
        for c in trial.config.constraints
        if c.kind == "reward"
    )
    return (
        f"it meets not even the loosest of its thresholds, {named}, those that are asked for together at 95 %: nearest "
        f"is at least {reached}, at {spent}"
    )


def _told(constraint: ConstraintConfig, bound: float) -> str:
    """Return a threshold in four digits, so that what is printed can be asked for."""
    return f"{below(bound):g}" if constraint.kind == "reward" else f"{bound:.4g}"
