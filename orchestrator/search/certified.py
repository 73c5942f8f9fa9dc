"""Thresholds one after another, each where the least KL is known worst, until it is known well enough.

Symbols as in ``frontier.bounds.bounds``: U − L is the gap at thresholds b, and b is reached where U is finite.

1. The far corner of the box comes first: its model meets all thresholds of the box, so U is finite everywhere.
2. Then, always, the turning point with the largest gap. Choosing by U minus a prediction of P was tried on exact
   problems: with the prediction perfect it took as many trials to the same excess, and more to the same gap.
3. A running trial counts as if it had reached its thresholds, at the middle of the bounds and the slope of L; where
   there is no U yet, as predicted, or at the price of independent Gaussian rewards, ½ ‖(b − mean) / σ‖².
4. A trial whose thresholds no mixture reaches says how far its model went at its prices: λ'b > λ'R, which costs more
   than it had spent, is cut from the box. What is neither reached nor cut is asked for, the farthest first, in turn
   with gaps.
5. Nothing is asked for again near a finished or running trial; near a failed one once, if trials may be tried again.
6. A trial of the mixture at the widest gap, or the nearest one, may be trained further in place of another one there,
   where gaps are expected to be smaller after it. One whose distance from the optimum of its multipliers is d after r
   rounds is expected at d r / (r + j) after j more, until rounds have shown what share of it they leave: then at as
   much of d. Its KL is expected as much lower; a new trial at the middle of the bounds, the upper one lowered by the
   median of what trials were away after one round, and so far above that. What counts is the gain by round, of the j
   that pay best; where no gap is above that median, a new trial alone narrows nothing. A trial whose thresholds no
   mixture reaches goes on before anything else, and cuts nothing as long as it may.
7. A place close to the high end of a threshold is moved onto it: only models that reach the end can be mixed for
   thresholds there, so that one a little short of it leaves a thin layer with a large gap.

Thresholds of a finished trial that are asked for again are that trial's next round. The search ends when the gap is
below the tolerance, when trials are used up, when all places left were asked for before, or when only noise is left:
where the bounds without noise are closer than the tolerance and noise alone is wider, another trial would teach
nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.frontier.bounds import Bounds, Box, FrontierPoint, Pieces
from trainers.low_discrepancy import even_cube

FloatArray = NDArray[np.float64]

MOST_CONSTRAINTS = 6
"""Vertices grow like trials to the power of half the constraints."""
NEAR = 1e-3
"""Widths of the box, in every coordinate, within which two thresholds are the same question."""
NEAR_IN_VAIN = 0.05
"""The same where a trial failed for good, or finished and left the gap at its own thresholds open."""
AT_THE_END = 0.03
"""Widths from the high end within which a threshold is moved onto it."""
_SPREAD = 64
"""Thresholds all over the box by which two actions are compared."""
_WORTH = 0.1
"""Of the tolerance, that more training has to bring where thresholds are not reached."""
UNREACHED = 0.05
"""Widths, in total, by which thresholds may be out of reach without being worth a trial."""

Reason = Literal["tolerance", "max_trials", "noise", "nothing left"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialRecord:
    """What a search is told of a finished trial."""

    thresholds: FloatArray | None
    """``[m]``, reward units, as asked for; None for a trial with weights, which counts all the same."""
    point: FrontierPoint | None
    """What came of it, also where it is infeasible; None if it failed."""
    rounds: int = 1
    """How often it was trained; every round counts as a trial."""
    distance: float | None = None
    """KL to the optimum of its multipliers, nats; None where that is not known, and it is never continued."""
    before: float | None = None
    """The same before its last round; None where there was one alone, or it is not known."""

    def after(self, rounds: int, kept: float | None) -> float:
        """Distance that is expected after so many rounds more, of each of which a share is ``kept``: step 6."""
        if self.distance is None:
            return 0.0
        return self.distance * (self.rounds / (self.rounds + rounds) if kept is None else kept**rounds)


@dataclass(frozen=True, kw_only=True, eq=False)
class Gap:
    """How well the least KL is known."""

    gap: float
    """Largest U − L over the thresholds of the box that are reached, nats; infinite if hardly any are."""
    thresholds: FloatArray
    """``[m]``, where it is."""
    lower: float
    """L there, nats."""
    upper: float
    """U there, nats."""
    unreached: float
    """Largest total shortfall at thresholds neither reached nor cut, widths of the box."""
    trials: int
    """Rounds of finished trials, failed ones included."""
    kind: Literal["proven", "estimated"]
    """Proven: the trials are exact optima. Estimated: L holds as far as training and evaluation do."""


class CertifiedSearch:
    """Asks for thresholds and is told results; told the same again, in any order, it is the same search."""

    def __init__(
        self,
        box: Box,
        pretrained: FrontierPoint,
        *,
        tolerance: float,
        max_trials: int,
        deviations: float = 0.0,
        predict: Callable[[FloatArray], FrontierPoint] | None = None,
        exact: bool = False,
        retries: int = 1,
        rounds: int = 1,
    ) -> None:
        """Begin with no trial.

        Args:
            box: Thresholds in question.
            pretrained: See ``FrontierPoint.pretrained``.
            tolerance: Gap that is small enough, nats.
            max_trials: Most trials to ask for, failed ones and every round of one that is continued included.
            deviations: Standard errors by which noise widens the bounds.
            predict: Expected optimum at thresholds ``[m]``, for trials that run before there is a U.
            exact: Whether trials are exact optima.
            retries: How often thresholds near those of a failed trial may be asked for.
            rounds: How often a trial may be trained; 1: thresholds of finished trials are not asked for again.

        Raises:
            ValueError: More constraints than can be handled, a tolerance or a number of trials that is not
                positive, or a ``pretrained`` of another size.
        """
        if len(box.low) > MOST_CONSTRAINTS:
            raise ValueError(
                f"the certified search handles at most {MOST_CONSTRAINTS} constraints, got {len(box.low)}"
            )
        if not tolerance > 0:
            raise ValueError(f"tolerance must be above 0 nats, got {tolerance:g}")
        if max_trials < 1:
            raise ValueError(f"max_trials must be at least 1, got {max_trials}")
        if pretrained.rewards.shape != box.low.shape:
            raise ValueError(
                f"the pretrained model has {len(pretrained.rewards)} rewards, the box {len(box.low)} thresholds"
            )
        self.box, self.tolerance, self.max_trials = box, tolerance, max_trials
        self._pretrained, self._deviations, self._exact = pretrained, deviations, exact
        self._retries, self._rounds = retries, rounds
        self._predict = self._as_gaussian if predict is None else predict
        self._records: list[TrialRecord] = []
        self._running: list[FloatArray] = []
        self._known = self._look(())

    def ask(self) -> FloatArray | None:
        """Return thresholds ``[m]`` for a trial to start now; None to wait for running ones, or if ``finished``."""
        known = self._look(self._running) if self._running else self._known
        chosen = None if self.finished else known.choice
        if chosen is None:
            return None
        self._running.append(chosen)
        return chosen.copy()

    def expect(self, thresholds: FloatArray, *, asked: FloatArray | None = None) -> None:
        """Count thresholds ``[m]`` as asked for: their trial has been started, and its result is still to come.

        Args:
            thresholds: Of the trial, which its result will be told with.
            asked: What ``ask`` returned last, in whose place they are, as when a trial's are rounded.
        """
        if asked is not None:
            assert np.array_equal(self._running[-1], asked), "only the last question is answered by others"
            self._running.pop()
        self._running.append(np.array(thresholds, dtype=np.float64))

    def tell(self, record: TrialRecord) -> Gap:
        """Learn of a finished trial, whoever asked for it, and say how well the least KL is known now."""
        if record.thresholds is not None:
            self._running = [
                running
                for running in self._running
                if np.abs((running - record.thresholds) / self.box.widths).max() > 1e-9
            ]
            if record.rounds > 1:  # it takes the place of what the trial had before
                self._records = [
                    each for each in self._records if not _same(each.thresholds, record.thresholds)
                ]
        # In an order of their own: trials that end in another order must not change what is asked next.
        self._records = sorted([*self._records, record], key=_key)
        self._known = self._look(())
        return self.gap

    @property
    def gap(self) -> Gap:
        """From what has finished."""
        return self._known.gap

    @property
    def finished(self) -> bool:
        """Whether nothing will be asked for any more; trials may still be running."""
        return self.reason is not None

    @property
    def reason(self) -> Reason | None:
        """Why it is finished, or None."""
        if self.gap.gap <= self.tolerance and self.gap.unreached <= UNREACHED:
            return "tolerance"
        asked = len(self._running) + sum(r.rounds for r in self._records if r.thresholds is not None)
        if asked >= self.max_trials:
            return "max_trials"
        if self._running or self._known.choice is not None:
            return None
        noise = self.tolerance < self.gap.gap < np.inf and not self._known.useful.any()
        return "noise" if noise else "nothing left"

    @property
    def undertrained(self) -> bool:
        """Whether a trial leaves its own thresholds open for want of training: another near it would do no better."""
        return self._known.undertrained

    def _look(self, running: Sequence[FloatArray]) -> "_Knowledge":
        points = [self._pretrained, *(record.point for record in self._records if record.point is not None)]
        for thresholds in running:
            points.append(self._expected(thresholds, self._bounds(points)))
        plain = self._bounds(points)
        return _Knowledge(
            records=tuple(self._records),
            points=tuple(points),
            running=tuple(running),
            plain=plain,
            wide=self._bounds(points, self._deviations) if self._deviations else plain,
            tolerance=self.tolerance,
            exact=self._exact,
            retries=self._retries,
            rounds=self._rounds,
        )

    def _bounds(self, points: Sequence[FrontierPoint], deviations: float = 0.0) -> Bounds:
        return Bounds(points, self.box, deviations=deviations)

    def _expected(self, thresholds: FloatArray, bounds: Bounds) -> FrontierPoint:
        """Step 3."""
        lower, upper = (float(bound(thresholds[None])[0]) for bound in (bounds.lower, bounds.upper))
        if not np.isfinite(upper):
            return self._predict(thresholds)
        middle = 0.5 * (lower + max(lower, upper))
        return FrontierPoint(rewards=thresholds, kl=middle, multipliers=bounds.prices(thresholds))

    def _as_gaussian(self, thresholds: FloatArray) -> FrontierPoint:
        spread = self.box.widths if self.box.spread is None else self.box.spread
        lift = np.maximum(thresholds - self._pretrained.rewards, 0.0) / spread
        return FrontierPoint(rewards=thresholds, kl=0.5 * float(lift @ lift), multipliers=lift / spread)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Knowledge:
    """What follows from finished trials, and from running ones as if they had finished as expected."""

    records: tuple[TrialRecord, ...]
    points: tuple[FrontierPoint, ...]
    """Of the pretrained model, of the records that left one, and of running trials."""
    running: tuple[FloatArray, ...]
    plain: Bounds
    """Without noise."""
    wide: Bounds
    """With it; the same where there is none."""
    tolerance: float
    exact: bool
    retries: int
    rounds: int

    @cached_property
    def places(self) -> FloatArray:
        """Reached thresholds ``[v, m]``, one of which has the largest gap."""
        return self.wide.widest()

    @cached_property
    def gaps(self) -> FloatArray:
        """``[v]``, nats."""
        return self.wide.gaps(self.places)

    @cached_property
    def useful(self) -> NDArray[np.bool_]:
        """Whether another trial, which leaves the noise, could help: ``[v]``."""
        tolerance = self.tolerance
        without_noise = self.gaps if self.plain is self.wide else self.plain.gaps(self.places)
        enough = (self.gaps - without_noise < tolerance) | (without_noise > tolerance)
        return (self.gaps > tolerance) & (without_noise > 0.1 * tolerance) & enough

    @cached_property
    def beyond(self) -> tuple[FloatArray, FloatArray]:
        """Thresholds ``[u, m]`` that are not cut and their shortfall ``[u]``, widths; none where all are reached."""
        if self.plain.everywhere:
            return np.empty((0, len(self.plain.box.low))), np.empty(0)
        places = self.plain.turning_points(self._cuts())
        return places, self.plain.shortfall(places)

    @cached_property
    def gap(self) -> Gap:
        """The largest one."""
        known = len(self.gaps) > 0
        place = self.places[int(np.argmax(self.gaps))] if known else self.wide.box.high
        return Gap(
            gap=float(self.gaps.max()) if known else np.inf,
            thresholds=place,
            lower=float(self.wide.lower(place[None])[0]),
            upper=float(self.wide.upper(place[None])[0]),
            unreached=float(self.beyond[1].max(initial=0.0)),
            trials=sum(record.rounds for record in self.records),
            kind="proven" if self.exact else "estimated",
        )

    @cached_property
    def choice(self) -> FloatArray | None:
        """Thresholds to ask for next, if any are worth a trial."""
        places, shortfall = self.beyond
        if (short := self._short()) is not None:
            return short
        far = self._first_new(places, np.where(shortfall > UNREACHED, shortfall, 0.0))
        wide = self._first_new(self.places, np.where(self.useful, self.gaps, 0.0))
        turn = sum(record.rounds for record in self.records) + len(self.running)
        if far is not None and (wide is None or turn % 2 == 0):
            return far
        return self.continued if far is None and self.continued is not None else wide

    @cached_property
    def undertrained(self) -> bool:
        """Whether at some trial's thresholds the gap is above the tolerance, and most of it its own distance.

        Where no mixture reaches them, whether it has a distance that is worth a round.
        """
        asked = [each for each in self.records if each.thresholds is not None and each.point is not None]
        gaps = self.plain.gaps(
            np.array([each.thresholds for each in asked]).reshape(-1, len(self.plain.box.low))
        )
        away = np.array([0.0 if each.point is None else each.point.distance for each in asked])
        enough = np.where(np.isfinite(gaps), 0.5 * gaps, _WORTH * self.tolerance)
        return bool(((gaps > self.tolerance) & (away > enough)).any())

    @cached_property
    def continued(self) -> FloatArray | None:
        """Thresholds of the finished trial that should be trained further before any other starts: step 6."""
        if not len(self.gaps) or self.gaps.max() <= self.tolerance:
            return None
        pointed = [record for record in self.records if record.point is not None]
        may = [
            index
            for index, record in enumerate(pointed)
            if self._may_go_on(record) and not self._runs(record)
        ]
        if not may:
            return None
        place = self.places[int(np.argmax(self.gaps))]
        shares = self.wide.mixture(place)[1:]  # of the records that left a point, after the pretrained model
        nearest = min(may, key=lambda index: self._apart(pointed[index], place))
        gains = {
            index: self._per_round(
                partial(self._further, pointed, index), self.rounds - pointed[index].rounds
            )
            for index in may
            if shares[index] > 0 or index == nearest
        }
        best = max(gains, key=lambda index: gains[index])
        first = _first_distance(pointed)
        worth = np.where(self.useful & (self.gaps > first), self.gaps, 0.0)
        elsewhere = self._first_new(self.places, worth)
        if (
            elsewhere is not None
            and self._per_round(partial(self._fresh, elsewhere, first), self.rounds) >= gains[best]
        ):
            return None
        return pointed[best].thresholds

    def _apart(self, record: TrialRecord, place: FloatArray) -> float:
        """Widths of the box between a trial's thresholds and others ``[m]``."""
        return float(
            np.abs(self.plain.box.scaled(np.array([record.thresholds])) - self.plain.box.scaled(place)).max()
        )

    def _per_round(self, after: Callable[[int], Sequence[FrontierPoint]], most: int) -> float:
        """Nats that gaps are expected to shrink by in a round, if as many are done as pay best: ``after`` so many."""
        return max((self._now - self._size(after(rounds))) / rounds for rounds in range(1, most + 1))

    def _runs(self, record: TrialRecord) -> bool:
        return any(_same(record.thresholds, running) for running in self.running)

    def _may_go_on(self, record: TrialRecord) -> bool:
        if record.point is None or record.thresholds is None or record.distance is None:
            return False
        gain = record.distance - record.after(1, self._kept)
        return gain > _WORTH * self.tolerance and record.rounds < self.rounds

    @cached_property
    def _kept(self) -> float | None:
        """Share of a distance that a round was seen to leave, the median; None before any was."""
        seen = [
            min(record.distance / record.before, 1.0)
            for record in self.records
            if record.distance is not None and record.before is not None and record.before > 0
        ]
        return float(np.median(seen)) if seen else None

    def _short(self) -> FloatArray | None:
        """Thresholds that no mixture reaches, of the trial that is farthest from its optimum; none if it runs."""
        short = [
            record
            for record in self.records
            if self._may_go_on(record) and self.plain.shortfall(np.array([record.thresholds]))[0] > 0
        ]
        farthest = max(short, key=lambda record: record.distance or 0.0, default=None)
        return None if farthest is None or self._runs(farthest) else farthest.thresholds

    def _further(self, pointed: Sequence[TrialRecord], index: int, rounds: int) -> list[FrontierPoint]:
        """All points, one of them as it is expected after so many rounds more."""
        record, point = pointed[index], pointed[index].point
        assert point is not None, "only what left a point is continued"
        gain = point.distance - record.after(rounds, self._kept)
        nearer = replace(point, kl=max(point.kl - gain, 0.0), distance=point.distance - gain)
        return [*self.points[: index + 1], nearer, *self.points[index + 2 :]]

    def _fresh(self, thresholds: FloatArray, first: float, rounds: int) -> list[FrontierPoint]:
        """All points and a new one: that far from its optimum after one round, as it is expected after so many."""
        lower, upper = (float(bound(thresholds[None])[0]) for bound in (self.plain.lower, self.plain.upper))
        # What finished trials are above the least KL, they are short of training.
        least = 0.5 * (lower + max(lower, upper - first))
        begun = TrialRecord(thresholds=None, point=None, distance=first)
        away = begun.after(rounds - 1, self._kept)
        point = FrontierPoint(
            rewards=thresholds,
            kl=least + away,
            multipliers=self.plain.prices(thresholds),
            distance=away,
        )
        return [*self.points, point]

    def _size(self, points: Sequence[FrontierPoint]) -> float:
        """How large gaps are, nats: the fourth power mean over thresholds of the box, which is near the largest."""
        gaps = Bounds(points, self.plain.box).gaps(self._looked)
        return float(np.mean(gaps**4) ** 0.25)

    @cached_property
    def _now(self) -> float:
        """The same as they are."""
        return self._size(self.points)

    @cached_property
    def _looked(self) -> FloatArray:
        """Thresholds ``[v, m]`` that mixtures reach: those of the largest gaps, and others all over the box."""
        box = self.plain.box
        spread = box.unscaled(np.where(box.free, even_cube(1, 1 + _SPREAD, len(box.low)), 0.0))
        found = np.concatenate([self.places, spread])
        reached: FloatArray = found[np.isfinite(self.plain.upper(found))]
        return reached

    def _first_new(self, places: FloatArray, worth: FloatArray) -> FloatArray | None:
        """The worthiest of ``places`` with ``worth`` above 0 that steps 5 and 7 allow."""
        box = self.plain.box
        for index in np.argsort(-worth, kind="stable"):
            if worth[index] <= 0:
                return None
            place: FloatArray = places[index]
            moved = np.where(box.scaled(place) > 1.0 - AT_THE_END, box.high, place)
            for candidate in (moved, place):
                if not self._asked_before(candidate):
                    return candidate
        return None

    def _asked_before(self, place: FloatArray) -> bool:
        """Step 5."""
        scaled = self.plain.box.scaled(place)
        return any(
            bool((np.abs(scaled - centers) < radius).all(axis=1).any()) for centers, radius in self._questions
        )

    @cached_property
    def _questions(self) -> tuple[tuple[FloatArray, float], ...]:
        """Thresholds not to come near to, ``[n, m]`` in widths, and how near that is."""
        count = len(self.plain.box.low)
        finished, failed = (
            np.array(
                [
                    record.thresholds
                    for record in self.records
                    if record.thresholds is not None and (record.point is None) == without
                ]
            ).reshape(-1, count)
            for without in (False, True)
        )
        in_vain = finished[self.plain.gaps(finished) > 0.5 * self.tolerance]
        scaled = self.plain.box.scaled
        close = np.abs(scaled(failed)[:, None] - scaled(failed)).max(axis=2) < NEAR_IN_VAIN
        given_up = failed[close.sum(axis=1) > self.retries]
        asked = np.array([*finished, *self.running]).reshape(-1, count)
        return (scaled(asked), NEAR), (scaled(np.concatenate([in_vain, given_up])), NEAR_IN_VAIN)

    def _cuts(self) -> Pieces | None:
        """Step 4."""
        box = self.plain.box
        slopes, offsets = [], []
        for record in self.records:
            if record.thresholds is None or record.point is None or self._may_go_on(record):
                continue
            if not self.plain.shortfall(record.thresholds[None])[0] > 0:
                continue
            got, prices = box.scaled(record.point.rewards), record.point.multipliers
            slope = np.where(box.scaled(record.thresholds) > got, 1.0, 0.0)
            if prices is not None and prices.any():
                slope = prices * box.widths
            slopes.append(slope / slope.sum())
            offsets.append(-float(slopes[-1] @ got))
        return Pieces(slopes=np.array(slopes), offsets=np.array(offsets)) if slopes else None


def _first_distance(records: Sequence[TrialRecord]) -> float:
    """How far trials are from their optimum after one round: the median, nats."""
    away = [
        record.distance if record.before is None else max(record.before, record.distance)
        for record in records
        if record.distance is not None
    ]
    return float(np.median(away)) if away else 0.0


def _same(first: FloatArray | None, second: FloatArray | None) -> bool:
    """Whether both are the thresholds of one trial."""
    return first is not None and second is not None and bool(np.allclose(first, second, rtol=1e-9, atol=0.0))


def _key(record: TrialRecord) -> tuple[list[float], list[float], float]:
    asked = [] if record.thresholds is None else record.thresholds.tolist()
    got = [] if record.point is None else record.point.rewards.tolist()
    return asked, got, 0.0 if record.point is None else record.point.kl
