"""Answers of one residual for a whole box: multipliers are solved for, and measured on held-out samples.

    thresholds b of the box
      -> λ(b) of training, to begin with
      -> Newton on the concave dual, on noise of its own: its gradient are the violations g(λ), its Hessian is
         −Cov(r) of the policy there, which for the optimum of λ is exact
      -> held-out samples; where a violation's bound lies above what is allowed, the thresholds are raised by what is
         lacking and solved for again. All looks at the held-out samples count (``Evaluation.looks``).

Samples of a pipeline are dear: there λ(b) is measured as it is, or moved by what earlier answers of the same residual
showed, whose noise it shares (``Known``). So an eighth of the samples mostly tells as much as all of them, given whole
looks nearby (``partial``).

Training moves multipliers by local means of few samples; the residual is near the optimum of every multiplier long
before they have settled. So they need only be near, and what is given is measured.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from trainers.alignment.boxed.frontier import Frontier
from trainers.alignment.boxed.known import Known, Look, newton_step
from trainers.alignment.boxed.partial import completed
from trainers.config import TrialConfig
from trainers.duality.box import moved
from trainers.duality.constraint import Constraint, scaled_violations
from trainers.duality.lagrangian import KL, Lagrangian
from trainers.estimates import Estimate, over_all_prompts
from trainers.evaluate import estimate, evaluate, feasible, mean_interval
from trainers.models.base import Conditional
from trainers.rewards.base import Reward
from trainers.types import Answer, Evaluation, FloatArray
from trainers.workers.collective import Collective, Shard

_SHARE, _FEW = 8, 32
"""One in so many of the held-out samples is drawn to tell of all of them, and no fewer than so many."""
_BESIDE, _GUIDES = 3, 3
"""Whole looks that tell it; and looks, of an answer, that do not tell enough but where to look next, at most."""
_AS_GOOD, _KNOWN = 1.25, 2.0
"""Standard errors of a whole look within which a look at some tells enough: of what is constrained, and of a KL that is
only to be known."""
_IN_VAIN = 2
"""Looks that missed, after which the way to one that is known to hold is taken."""
LOOKS = 4
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
_VAIN, _VAIN_DEAR = 0.05, 0.3
"""Share of an answer's KL that may be paid for more than was asked, where it is not worth another look at some of the
samples; or a second one at all."""


Deviations = float | tuple[float | None, ...] | None
"""Standard errors by which rewards and budgets have to hold at the figure itself, of all or ``[m]``; None: as a trial
is feasible, at one-sided 95 % and within its allowance."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer, with all that it takes to sample it."""

    answer: Answer
    multipliers: FloatArray
    """``[m]``, per scaled violation."""
    tilt: FloatArray
    """``[R]``, nats per σ: of the optimum that the residual is asked for."""
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
        looks: Sequence[tuple[FloatArray, Evaluation]] = (),
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
            looks: Whole ones that there are, at multipliers ``[m]`` each.
        """
        self.frontier, self.policy, self.rewards = frontier, policy, rewards
        self._config, self._collective, self._reference = config, collective, reference
        self._multipliers = multipliers
        nodes = multipliers.reshape(len(frontier.box.masses), -1)
        self.most = _PAST * nodes.max(axis=0) + _PAST_ZERO
        """``[m]``, per scaled violation: the greatest multipliers that are asked for."""
        self._least = np.array(
            [_LEAST_BUDGET_PRICE if c.sign > 0 else 0.0 for c in frontier.lagrangian.constraints]
        )
        self._known = None if config.model.mixture is not None else Known()
        for place, found in looks:
            self._whole(place, replace(found, reference=reference, looks=LOOKS))

    @property
    def looks(self) -> list[tuple[FloatArray, Evaluation]]:
        """Whole looks that others of the same residual can begin with, at multipliers ``[m]`` each."""
        known = () if self._known is None else self._known.looks
        return [(look.multipliers, look.found) for look in known if look.whole]

    def reply(self, thresholds: FloatArray, *, deviations: Deviations = None, whole: bool = False) -> Reply:
        """Answer thresholds ``[m]`` of the box.

        Args:
            thresholds: Units of the quantities.
            deviations: By which they have to hold.
            whole: Whether all held-out samples are drawn for it, also where some would tell.
        """
        there = moved(self.frontier.lagrangian, thresholds)
        scales = np.array([c.scale for c in there.constraints])
        begun = self.frontier.box.at(self._multipliers, thresholds[None])[0]
        multipliers = np.clip(begun, self._least, self.most)
        if self._known is not None:
            return self._looked(there, multipliers, deviations, whole=whole)
        beyond = np.zeros(len(scales))  # scaled
        if deviations is not None:
            each = _of_each(deviations, len(scales))
            first = self._sampled(multipliers, held_out=False)
            share = np.sqrt(len(first.kl) / self._config.evaluation.images)
            errors = [estimate(first, c.quantity) for c in there.constraints]
            beyond = np.array(
                [share * _joint(found, by or 0.0) for found, by in zip(errors, each, strict=True)]
            )
            beyond /= scales
        for _ in range(LOOKS):
            multipliers = self._solved(there, multipliers, beyond)
            found = self._sampled(multipliers, held_out=True)
            lacking = _lacking(found, there.constraints, deviations) / scales
            if (lacking <= 0).all():
                break
            beyond = beyond + np.where(lacking > 0, np.maximum(1.1 * lacking, 2.0 * _SOLVED), 0.0)
        return self._reply(there, self._whole(multipliers, found), held=bool((lacking <= 0).all()))

    def replies(
        self, design: Sequence[FloatArray], *, deviations: Deviations = None, whole: int = 0
    ) -> list[Reply]:
        """Answer thresholds ``[m]`` each, by what was looked at for any of them.

        Args:
            design: The thresholds.
            deviations: As of ``reply``.
            whole: For the first so many all held-out samples are drawn.
        """
        found = dict(self.improving(design, deviations=deviations, whole=whole))
        return [found[number] for number in range(len(design))]

    def improving(
        self,
        design: Sequence[FloatArray],
        *,
        deviations: Deviations = None,
        whole: int = 0,
        left: Collection[int] | None = None,
    ) -> Iterator[tuple[int, Reply]]:
        """Yield the place in a design and the reply as each is found, and again where a later look answers better.

        Args:
            design: As of ``replies``, as are the others.
            deviations: As of ``reply``.
            whole: For the first so many all held-out samples are drawn.
            left: Places that are asked for; None: all.
        """
        found: dict[int, Reply] = {}
        for number, place in enumerate(design):
            if left is None or number in left:
                found[number] = self.reply(place, deviations=deviations, whole=number < whole)
                yield number, found[number]
        if self._known is None:
            return
        # A look at tighter thresholds may be cheaper than what was found before it.
        for number, before in found.items():
            there = moved(self.frontier.lagrangian, design[number])
            best = self._best(there, deviations, whole=number < whole)
            if best.answer.evaluation is not before.answer.evaluation:
                yield number, best

    def _looked(
        self, there: Lagrangian, multipliers: FloatArray, deviations: Deviations, *, whole: bool
    ) -> Reply:
        """Answer by looks at the held-out samples, earlier ones too: the cheapest that holds, else the nearest."""
        known = self._known
        assert known is not None, "samples are dear"
        short = partial(_short, there, deviations)

        def settled(look: Look, vain: float) -> bool:
            most = vain * estimate(look.found, KL).mean
            return _near(look.multipliers, short(look.found), most, self._least)

        def answered(vain: float) -> bool:
            return any(settled(look, vain) for look in known.usable(whole=whole))

        looked, guides, missed, dear = 0, _GUIDES, 0, False
        done = answered(_VAIN)
        while looked < LOOKS and not done:
            if len(known):
                multipliers = known.proposed(
                    short, multipliers, self._least, self.most, missed=missed, safe=missed >= _IN_VAIN
                )
                if looked and known.near(multipliers):
                    break  # there is nothing else to look at
            look = self._look_at_some(multipliers)
            missed += look is not None and bool((short(look.found) > 0).any())
            if look is None or whole or not look.tells:
                if look is not None and guides > 0 and not settled(look, _VAIN):
                    guides -= 1
                    continue
                if dear and not whole and answered(_VAIN_DEAR):
                    break
                look, dear = self._whole(multipliers, self._sampled(multipliers, held_out=True)), True
            looked += 1
            done = answered(_VAIN_DEAR if whole else _VAIN) or known.in_vain(short)
        return self._best(there, deviations, whole=whole)

    def _best(self, there: Lagrangian, deviations: Deviations, *, whole: bool) -> Reply:
        """Return the look so far that answers best: the cheapest that holds, else the nearest."""
        assert self._known is not None, "samples are dear"
        judged = [(_short(there, deviations, look.found), look) for look in self._known.usable(whole=whole)]
        lacks, best = min(
            judged, key=lambda one: (max(float(one[0].max()), 0.0), estimate(one[1].found, KL).mean)
        )
        return self._reply(there, best, held=bool((lacks <= 0).all()))

    def _whole(self, multipliers: FloatArray, found: Evaluation) -> Look:
        """Return a whole look at multipliers ``[m]``; where samples are dear it is remembered."""
        curvature = self._curvature(self.frontier.lagrangian, multipliers, found)
        look = Look(multipliers=multipliers, found=found, drawn=found, curvature=curvature)
        if self._known is not None:
            self._known.add(look)
        return look

    def _look_at_some(self, multipliers: FloatArray) -> Look | None:
        """Look at multipliers ``[m]`` by the first of the held-out samples; None where they would tell nothing."""
        assert self._known is not None, "samples are dear"
        images = self._config.evaluation.images
        count, beside = max(images // _SHARE, _FEW), self._known.nearest(multipliers, _BESIDE)
        if not beside or 2 * count > images:
            return None
        part = self._sampled(multipliers, held_out=True, images=count)
        tries = (completed(part, beside[:known]) for known in range(len(beside), 0, -1))
        if (found := next((one for one in tries if one is not None), None)) is None:
            return None
        curvature = self._curvature(self.frontier.lagrangian, multipliers, beside[0])
        tells = self._tells(found, beside[0])
        look = Look(multipliers=multipliers, found=found, drawn=part, curvature=curvature, tells=tells)
        self._known.add(look)
        return look

    def _tells(self, found: Evaluation, near: Evaluation) -> bool:
        """Whether a look at some of the samples is as good as one at all, such as that nearby."""
        most = {KL: _KNOWN} | {c.quantity: _AS_GOOD for c in self.frontier.lagrangian.constraints}
        return all(
            estimate(found, name).error <= share * estimate(near, name).error for name, share in most.items()
        )

    def at(self, multipliers: FloatArray) -> Reply:
        """Measure multipliers ``[m]``, per scaled violation: an answer for the thresholds that they come to."""
        look = None if self._known is None else self._look_at_some(multipliers)
        if look is None or not look.tells:
            look = self._whole(multipliers, self._sampled(multipliers, held_out=True))
        bounds = [estimate(look.found, c.quantity).mean for c in self.frontier.lagrangian.constraints]
        return self._reply(moved(self.frontier.lagrangian, np.array(bounds)), look, held=True)

    def nearest(
        self, thresholds: FloatArray, *, deviations: Deviations = None, missed: Reply | None = None
    ) -> Reply:
        """Return an answer that holds, as far towards thresholds ``[m]`` as one is found; else that of the loosest.

        It lies on the line from the loosest thresholds of the box to where these enter it.

        Args:
            thresholds: Units of the quantities.
            deviations: As of ``reply``.
            missed: What they were answered before, where that did not hold.
        """
        box = self.frontier.box
        end = box.clipped(thresholds)
        best = self.reply(end, deviations=deviations) if missed is None else missed
        if best.held:
            return best
        if self._known is not None:
            return self._farthest(end, deviations)
        low, high, kept = 0.0, 1.0, self.reply(box.loosest, deviations=deviations)
        for _ in range(_HALVINGS if kept.held else 0):
            place = (low + high) / 2.0
            found = self.reply(box.loosest + place * (end - box.loosest), deviations=deviations)
            if found.held:
                low, kept = place, found
            else:
                high = place
        return kept

    def _farthest(self, end: FloatArray, deviations: Deviations) -> Reply:
        """Return the earlier look that holds farthest towards thresholds ``[m]``: another would be dear.

        Where none holds at the loosest, they are looked for.
        """
        assert self._known is not None, "samples are dear"
        loosest = self.frontier.box.loosest
        ends = [moved(self.frontier.lagrangian, place).constraints for place in (loosest, end)]
        kept: tuple[float, Look] | None = None
        for look in self._known.usable(whole=False):
            share = _held_until(*(_lacking(look.found, place, deviations) for place in ends))
            if share is not None and (kept is None or share > kept[0]):
                kept = share, look
        if kept is None:
            return self.reply(loosest, deviations=deviations)
        share, look = kept
        return self._reply(
            moved(self.frontier.lagrangian, loosest + share * (end - loosest)), look, held=True
        )

    def _reply(self, there: Lagrangian, look: Look, *, held: bool) -> Reply:
        found, tilt = look.found, self.frontier.tilt(look.multipliers)
        means = {name: estimate(found, name).mean for name in (KL, *found.rewards)}
        answer = Answer(
            thresholds={c.name: c.bound for c in there.constraints},
            multipliers=there.prices(look.multipliers),
            kl=mean_interval(found, KL),
            rewards={name: mean_interval(found, name) for name in found.rewards},
            violations=there.violations(means),
            feasible=feasible(found, there.constraints),
            images=len(look.drawn.kl),
            evaluation=look.drawn,
        )
        return Reply(answer=answer, multipliers=look.multipliers, tilt=tilt, held=held)

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
            curvature = self._curvature(there, multipliers, found)
            step = newton_step(gaps, curvature, multipliers, self._least, self.most)
            longest = 0.5 + 0.5 * float(np.linalg.norm(multipliers))
            step *= min(1.0, longest / max(float(np.linalg.norm(step)), 1e-12))
            multipliers = np.clip(multipliers + step, self._least, self.most)
        return multipliers

    def _curvature(self, there: Lagrangian, multipliers: FloatArray, found: Evaluation) -> FloatArray:
        """Return ``−∂g/∂λ``, ``[m, m]``, of the tilted family through the policy's samples."""
        acting, spread = self._config.acting, self._covariance(found)
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

    def _covariance(self, found: Evaluation) -> FloatArray:
        """Return that of the rewards that act, in σ, ``[R, R]``: of a group's as they act, over all prompts.

        Spread around the mean of the group, its prompts differ from the others by nothing.
        """
        rewards = {name: found.rewards[name] for name in self._config.acting}
        centres = {name: float(np.nanmean(values)) for name, values in rewards.items()}
        whole = over_all_prompts(self._config, rewards, found.prompts, centres=centres)
        values = np.stack(list(whole.values())) / self.frontier.deviations[:, None]
        return np.cov(values[:, ~np.isnan(values).any(axis=0)]).reshape(len(values), len(values))


_HALVINGS = 5
_AT_LEAST = 1e-9
"""Share by which the thresholds of a look that just holds are loosened: what rounding could take."""
_SMALL = 1e-4
"""Nats per σ: of a difference quotient."""


def _joint(found: Estimate, deviations: float) -> float:
    """Return how far below its mean an estimate is taken to be, of a choice among ``LOOKS`` looks."""
    interval = replace(found, looks=LOOKS).interval()
    return deviations * (interval.high - interval.low) / (2.0 * _TWO_SIDED)


_TWO_SIDED = 1.959963984540054
"""Standard errors to either end of a two-sided 95 % interval."""


def _short(there: Lagrangian, deviations: Deviations, found: Evaluation) -> FloatArray:
    """Return ``[m]`` by how much each threshold is missed, scaled."""
    scales = np.array([c.scale for c in there.constraints])
    return np.asarray(_lacking(found, there.constraints, deviations) / scales)


def _near(multipliers: FloatArray, lacking: FloatArray, vain: float, least: FloatArray) -> bool:
    """Whether nothing is lacking ``[m]``, scaled, and what is exceeded costs at most so many nats at its prices."""
    return bool((lacking <= 0).all()) and float((multipliers - least) @ -lacking) <= vain


def _held_until(start: FloatArray, end: FloatArray) -> float | None:
    """Return how far, from 0 to 1, nothing is lacking between two lacks ``[m]``; None: not at the start."""
    if (start > 0).any():
        return None
    over = end > 0
    shares = start[over] / (start[over] - end[over])
    return max(float(shares.min(initial=1.0)) - _AT_LEAST, 0.0) if over.any() else 1.0


def _of_each(deviations: Deviations, count: int) -> tuple[float | None, ...]:
    return deviations if isinstance(deviations, tuple) else (deviations,) * count


def _lacking(found: Evaluation, constraints: tuple[Constraint, ...], deviations: Deviations) -> FloatArray:
    """Return ``[m]`` by how much each threshold is missed, as it was asked for, units of the quantities."""
    lacking = []
    for constraint, by in zip(constraints, _of_each(deviations, len(constraints)), strict=True):
        known = estimate(found, constraint.quantity)
        missed = constraint.violation(known.mean)
        if by is None:
            lacking.append(missed + known.margin() - constraint.allowance)
        else:
            lacking.append(missed + _joint(known, by))
    return np.array(lacking)
