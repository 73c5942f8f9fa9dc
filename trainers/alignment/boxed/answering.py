"""Answers of one residual for a whole box: multipliers are solved for, and measured on held-out samples.

    thresholds b of the box
      -> λ(b) of training, to begin with
      -> Newton on the concave dual, on noise of its own: its gradient are the violations g(λ), its Hessian is
         −Cov(r) of the policy there, which for the optimum of λ is exact
      -> held-out samples; where a violation's bound lies above what is allowed, the thresholds are raised by what is
         lacking and solved for again. All looks at the held-out samples count (``Evaluation.looks``).

Samples of a pipeline are dear: there λ(b) is measured as it is, or moved by what earlier answers of the same residual
showed, whose noise it shares, after glances at a quarter of the samples (``Known``).

Training moves multipliers by local means of few samples; the residual is near the optimum of every multiplier long
before they have settled. So they need only be near, and what is given is measured.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from trainers.alignment.boxed.frontier import Frontier
from trainers.alignment.boxed.known import Known, newton_step
from trainers.config import TrialConfig
from trainers.duality.box import moved
from trainers.duality.constraint import Constraint, scaled_violations
from trainers.duality.lagrangian import KL, Lagrangian
from trainers.estimates import Estimate
from trainers.evaluate import estimate, evaluate, feasible, mean_interval
from trainers.models.base import Conditional
from trainers.rewards.base import Reward
from trainers.types import Answer, Evaluation, FloatArray
from trainers.workers.collective import Collective, Shard

_SHARE, _GLANCES, _FEW = 4, 3, 32
"""One in so many of the held-out samples tells where to look at all of them, after at most so many glances; fewer than
so many tell nothing."""
LOOKS = 3
"""Times that the held-out samples of one answer are looked at, at most."""
_SEED = 3_000_017
"""Of the noise that multipliers are solved for on: neither that of training nor the held-out one."""
_SAMPLES = 4096
_ROUNDS = 8
_SOLVED = 0.002
"""Scaled violation at which a round is the last."""
_PAST, _PAST_ZERO = 1.4, 0.25
"""The residual is asked for multipliers up to so many times the greatest that training had, and so many nats per σ
more: farther it was never trained."""
_LEAST_BUDGET_PRICE = 1e-2
_VAIN, _VAIN_LOOKED_FOR = 0.1, 0.3
"""Share of an answer's KL that may be paid for more than was asked, where it is not worth another glance, or another
look after glances have led to one that holds."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer, with all that it takes to sample it."""

    answer: Answer
    multipliers: FloatArray
    """``[m]``, per scaled violation."""
    tilt: FloatArray
    """``[R]``, nats per σ: of the optimum that the residual is asked for."""
    evaluation: Evaluation
    held: bool
    """Whether it meets its thresholds as it was asked to."""


class Answering:
    """A finished residual for a box of thresholds."""

    def __init__(
        self,
        config: TrialConfig,
        frontier: Frontier,
        multipliers: FloatArray,
        policy: Conditional,
        rewards: Mapping[str, Reward],
        *,
        collective: Collective | Shard,
        reference: Mapping[str, FloatArray] | None,
    ) -> None:
        """Take the residual, and what to measure it by.

        Args:
            config: Of its trial.
            frontier: The problem at every threshold of the box.
            multipliers: ``[N m]`` at the nodes, per scaled violation.
            policy: With the residual.
            rewards: That evaluations score.
            collective: The workers that share the sampling.
            reference: Rewards of the pretrained model on the noise of evaluations, ``[N]`` each.
        """
        self.frontier, self.policy, self.rewards = frontier, policy, rewards
        self._config, self._collective, self._reference = config, collective, reference
        self._multipliers = multipliers
        nodes = multipliers.reshape(len(frontier.box.masses), -1)
        self.most = _PAST * nodes.max(axis=0) + _PAST_ZERO
        """``[m]``, per scaled violation: the greatest multipliers that are asked for."""
        self._known = None if config.model.mixture is not None else Known()
        self._least = np.array(
            [_LEAST_BUDGET_PRICE if c.sign > 0 else 0.0 for c in frontier.lagrangian.constraints]
        )

    def reply(self, thresholds: FloatArray, *, deviations: float | None = None) -> Reply:
        """Answer thresholds ``[m]`` of the box.

        Args:
            thresholds: Units of the quantities.
            deviations: Standard errors by which rewards and budgets have to hold at the figure itself; None: as a
                trial is feasible, at one-sided 95 % and within its allowance.
        """
        there = moved(self.frontier.lagrangian, thresholds)
        scales = np.array([c.scale for c in there.constraints])
        begun = self.frontier.box.at(self._multipliers, thresholds[None])[0]
        multipliers = np.clip(begun, self._least, self.most)
        if self._known is not None:
            return self._looked(there, multipliers, deviations)
        beyond = np.zeros(len(scales))  # scaled
        if deviations is not None:
            first = self._sampled(multipliers, held_out=False)
            share = np.sqrt(len(first.kl) / self._config.evaluation.images)
            errors = [estimate(first, c.quantity) for c in there.constraints]
            beyond = np.array([share * _joint(found, deviations) for found in errors]) / scales
        for _ in range(LOOKS):
            multipliers = self._solved(there, multipliers, beyond)
            found = self._sampled(multipliers, held_out=True)
            lacking = _lacking(found, there.constraints, deviations) / scales
            if (lacking <= 0).all():
                break
            beyond = beyond + np.where(lacking > 0, np.maximum(1.1 * lacking, 2.0 * _SOLVED), 0.0)
        return self._reply(there, multipliers, found, held=bool((lacking <= 0).all()))

    def _looked(self, there: Lagrangian, multipliers: FloatArray, deviations: float | None) -> Reply:
        """Answer by looks at the held-out samples alone; the cheapest that holds, else the one that lacks least."""
        assert self._known is not None, "samples are dear"
        scales = np.array([c.scale for c in there.constraints])

        def short(found: Evaluation) -> FloatArray:
            return np.asarray(_lacking(found, there.constraints, deviations) / scales)

        replies: list[tuple[float, float, Reply]] = []
        for look in range(LOOKS):
            if glanced := look > 0 or len(self._known) > 0:
                multipliers = self._glanced(there, multipliers, short)
                if replies and np.allclose(multipliers, replies[-1][2].multipliers, atol=1e-3):
                    break  # there is nothing else to look at
            found = self._sampled(multipliers, held_out=True)
            self._known.add(multipliers, found, self._curvature(there, multipliers, found))
            lacking = short(found)
            reply = self._reply(there, multipliers, found, held=bool((lacking <= 0).all()))
            replies.append((max(float(lacking.max()), 0.0), reply.answer.kl.mean, reply))
            vain = _VAIN_LOOKED_FOR if glanced else _VAIN
            if _near(multipliers, lacking, vain * reply.answer.kl.mean):
                break
        return min(replies, key=lambda one: one[:2])[2]

    def _glanced(
        self, there: Lagrangian, near: FloatArray, short: Callable[[Evaluation], FloatArray]
    ) -> FloatArray:
        """Return multipliers ``[m]`` to look at, found by glances at the first of the held-out samples."""
        assert self._known is not None, "samples are dear"
        count, seen = self._config.evaluation.images // _SHARE, list[tuple[float, float, FloatArray]]()
        for _ in range(_GLANCES):
            multipliers = self._known.proposed(short, near, self._least, self.most)
            if count < _FEW or self._known.near(multipliers):
                return multipliers
            guess = self._known.guessed(multipliers, self._sampled(multipliers, held_out=True, images=count))
            self._known.add(multipliers, guess, self._curvature(there, multipliers, guess), whole=False)
            lacking, kl = short(guess), estimate(guess, KL).mean
            if _near(multipliers, lacking, _VAIN * kl):
                return multipliers
            seen.append((max(float(lacking.max()), 0.0), kl, multipliers))
        return min(seen, key=lambda one: one[:2])[2]

    def at(self, multipliers: FloatArray) -> Reply:
        """Measure multipliers ``[m]``, per scaled violation: an answer for the thresholds that they come to."""
        found = self._sampled(multipliers, held_out=True)
        bounds = [estimate(found, c.quantity).mean for c in self.frontier.lagrangian.constraints]
        return self._reply(moved(self.frontier.lagrangian, np.array(bounds)), multipliers, found, held=True)

    def nearest(self, thresholds: FloatArray, *, deviations: float | None = None) -> Reply | None:
        """Return an answer that holds, as far towards thresholds ``[m]`` as one is found; None: not even the loosest.

        It lies on the line from the loosest thresholds of the box to where these enter it.
        """
        box = self.frontier.box
        end = box.clipped(thresholds)
        best = self.reply(end, deviations=deviations)
        if best.held:
            return best
        low, high, kept = 0.0, 1.0, None
        for share in (0.0, *[None] * (_HALVINGS if self._known is None else _HALVINGS // 2)):
            place = (low + high) / 2.0 if share is None else share
            found = self.reply(box.loosest + place * (end - box.loosest), deviations=deviations)
            if found.held:
                low, kept = place, found
            elif share is not None:
                return None
            else:
                high = place
        return kept

    def _reply(self, there: Lagrangian, multipliers: FloatArray, found: Evaluation, *, held: bool) -> Reply:
        means = {name: estimate(found, name).mean for name in (KL, *found.rewards)}
        answer = Answer(
            thresholds={c.name: c.bound for c in there.constraints},
            multipliers=there.prices(multipliers),
            kl=mean_interval(found, KL),
            rewards={name: mean_interval(found, name) for name in found.rewards},
            violations=there.violations(means),
            feasible=feasible(found, there.constraints),
            evaluation=found,
        )
        tilt = self.frontier.tilt(multipliers)
        return Reply(answer=answer, multipliers=multipliers, tilt=tilt, evaluation=found, held=held)

    def _sampled(self, multipliers: FloatArray, *, held_out: bool, images: int | None = None) -> Evaluation:
        """Sample the policy at multipliers ``[m]``; of held-out samples all, or the first so many."""
        asked, prompts = self._config.evaluation, self._config.prompts
        train = None if held_out or prompts is None else prompts.in_turn("train", _SEED)
        constrained = {name: self.rewards[name] for name in self._config.acting}
        found = evaluate(
            self.policy.at(self.frontier.tilt(multipliers)),
            self.rewards if held_out else constrained,
            samples=images or (asked.images if held_out else min(asked.images, _SAMPLES)),
            seed=asked.seed if held_out else _SEED,
            collective=self._collective,
            prompts=train,
            batch=asked.batch,
        )
        return replace(found, reference=self._reference, looks=LOOKS) if held_out else found

    def _solved(self, there: Lagrangian, multipliers: FloatArray, beyond: FloatArray) -> FloatArray:
        """Return multipliers ``[m]`` at which violations are ``−beyond``, or below it at a multiplier of 0."""
        for _ in range(_ROUNDS):
            found = self._sampled(multipliers, held_out=False)
            means = {name: float(np.nanmean(values)) for name, values in found.rewards.items()}
            gaps = scaled_violations(there.constraints, means | {KL: float(found.kl.mean())}) + beyond
            left = np.where(multipliers > self._least, np.abs(gaps), np.maximum(gaps, 0.0))
            stopped = (multipliers >= self.most) & (gaps > 0)
            if (left[~stopped] <= _SOLVED).all():
                break
            step = newton_step(gaps, self._curvature(there, multipliers, found), multipliers, self._least)
            longest = 0.5 + 0.5 * float(np.linalg.norm(multipliers))
            step *= min(1.0, longest / max(float(np.linalg.norm(step)), 1e-12))
            multipliers = np.clip(multipliers + step, self._least, self.most)
        return multipliers

    def _curvature(self, there: Lagrangian, multipliers: FloatArray, found: Evaluation) -> FloatArray:
        """Return ``−∂g/∂λ``, ``[m, m]``, of the tilted family through the policy's samples."""
        acting = self._config.acting
        values = np.stack([found.rewards[name] for name in acting]) / self.frontier.deviations[:, None]
        spread = np.cov(values[:, ~np.isnan(values).any(axis=0)]).reshape(len(acting), len(acting))
        tilt = self.frontier.tilt(multipliers)
        turned = np.stack(
            [self.frontier.tilt(multipliers + move) - tilt for move in _SMALL * np.eye(len(multipliers))],
            axis=1,
        )
        change = spread @ turned / _SMALL  # [R, m], of the rewards in σ
        rows = []
        for constraint in there.constraints:
            if constraint.quantity == KL:
                moves = tilt @ change
            else:
                place = acting.index(constraint.quantity)
                moves = change[place] * self.frontier.deviations[place]
            rows.append(-constraint.sign * moves / constraint.scale)
        curvature = np.stack(rows)
        return np.asarray((curvature + curvature.T) / 2.0)


_HALVINGS = 5
_SMALL = 1e-4
"""Nats per σ: of a difference quotient."""


def _joint(found: Estimate, deviations: float) -> float:
    """Return how far below its mean an estimate is taken to be, of a choice among ``LOOKS`` looks."""
    interval = replace(found, looks=LOOKS).interval()
    return deviations * (interval.high - interval.low) / (2.0 * _TWO_SIDED)


_TWO_SIDED = 1.959963984540054
"""Standard errors to either end of a two-sided 95 % interval."""


def _near(multipliers: FloatArray, lacking: FloatArray, vain: float) -> bool:
    """Whether nothing is lacking ``[m]``, scaled, and what is exceeded costs at most so many nats at its prices."""
    return bool((lacking <= 0).all()) and float(multipliers @ -lacking) <= vain


def _lacking(found: Evaluation, constraints: tuple[Constraint, ...], deviations: float | None) -> FloatArray:
    """Return ``[m]`` by how much each threshold is missed, as it was asked for, units of the quantities."""
    lacking = []
    for constraint in constraints:
        known = estimate(found, constraint.quantity)
        missed = constraint.violation(known.mean)
        if deviations is None:
            lacking.append(missed + known.margin() - constraint.allowance)
        else:
            lacking.append(missed + _joint(known, deviations))
    return np.array(lacking)
