"""The certified search of a sweep: thresholds of its spec in, trials of its plan out."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from orchestrator.frontier.bounds import (
    Box,
    FrontierPoint,
    bounded,
    mean_point,
    points_of,
    pretrained_point,
)
from orchestrator.frontier.trials import Trials
from orchestrator.plan import (
    PlannedTrial,
    absolute_threshold,
    base_config,
    constrained_trial,
    resolve_thresholds,
    written_thresholds,
)
from orchestrator.results.schema import Names, bounds_table, rounds_of, trials_schema
from orchestrator.search.base import Row, Search, SearchContext
from orchestrator.search.box_rounds import box_goes_on
from orchestrator.search.certified import CertifiedSearch, Gap, TrialRecord
from orchestrator.spec import (
    RewardConstraint,
    SweepSpec,
    ThresholdRange,
    max_trials,
    most_rounds,
)
from trainers.config import BaselineStatistics, TrialConfig
from trainers.types import FloatArray

DEVIATIONS = 1.0
"""Standard errors by which noise widens the bounds."""


@dataclass(frozen=True, kw_only=True)
class _Ended:
    """What a trial came to."""

    point: FrontierPoint | None
    rounds: int
    distance: float | None
    before: float | None


def _record(key: tuple[float, ...], seeds: Sequence[_Ended]) -> TrialRecord:
    """Put the seeds of one setting together."""
    points = [ended.point for ended in seeds if ended.point is not None]
    distances = [ended.distance for ended in seeds if ended.distance is not None]
    before = [ended.before for ended in seeds if ended.before is not None]
    return TrialRecord(
        thresholds=np.array(key),
        point=mean_point(points) if points else None,
        rounds=max(ended.rounds for ended in seeds),
        distance=float(np.mean(distances)) if len(distances) == len(seeds) else None,
        before=float(np.mean(before)) if len(before) == len(seeds) else None,
    )


class CertifiedPlan(Search):
    """Asks for thresholds where the frontier is known worst, each with every seed of the spec."""

    def __init__(self, context: SearchContext) -> None:
        """Begin; trials of the plan that are not finished count as running."""
        super().__init__(context)
        spec = context.spec
        assert spec.search.tolerance is not None, "a certified search has a tolerance"
        self._base = base_config(spec)
        self._coordinates = bounded(self._base)
        self._search = CertifiedSearch(
            threshold_box(context.spec, self._base, context.baseline),
            pretrained_point(context.pretrained, self._coordinates),
            tolerance=spec.search.tolerance,
            max_trials=max_trials(spec),
            deviations=DEVIATIONS,
            rounds=most_rounds(spec),
            retries=0,  # the same thresholds are the same trial, which has been tried often enough
        )
        self._gaps: list[Gap] = []
        self._queue: deque[PlannedTrial] = deque()
        self._settings: dict[tuple[float, ...], dict[str, _Ended]] = {}
        """By thresholds: the trials that have ended, by id."""
        self._waiting: dict[tuple[float, ...], set[str]] = {}
        mine = [trial for trial in context.plan.trials if trial.config.method == "constrained"]
        self._known = {(self._key(trial.config), trial.config.seed): trial for trial in mine}
        """Planned ones by thresholds and seed: an earlier version may have given them other ids."""
        # A driver that died between two seeds of the same thresholds left some of them unplanned.
        for trial in mine:
            for seed in self._seeds({c.name: c.bound for c in trial.config.constraints}):
                place = self._key(seed.config), seed.config.seed
                if place not in self._known:
                    self._known[place] = seed
                    self._queue.append(seed)
        for key, ids in self._waiting.items():
            if not ids <= context.finished.keys():
                self._search.expect(np.array(key))
        for trial in context.plan.trials:
            if trial.trial_id in context.finished:
                self.observe(trial, context.finished[trial.trial_id])
        self._catch_up()

    def _catch_up(self) -> None:
        """Queue the seeds that a driver that died has left a round behind the others of their setting."""
        for key, seeds in self._settings.items():
            most = max(ended.rounds for ended in seeds.values())
            behind = {
                name
                for name, ended in seeds.items()
                if ended.rounds < most and name in self.context.continuable
            }
            if not behind:
                continue
            for name in behind:
                del seeds[name]
            self._queue.extend(trial for trial in self._known.values() if trial.trial_id in behind)
            self._search.expect(np.array(key))

    def propose(self) -> PlannedTrial | None:
        """Return the next seed of the thresholds in question, or of new ones."""
        if not self._queue:
            if not self.context.spending.allows(len(self.context.spec.seeds)):
                return None
            asked = self._search.ask()
            if asked is None:
                return None
            if (key := tuple(asked.tolist())) in self._settings:
                self._settings[key] = {}
                self._queue.extend(trial for (place, _), trial in self._known.items() if place == key)
                return self._queue.popleft()
            written = written_thresholds(self._base, self.context.baseline, self._named(asked))
            seeds = self._seeds(written)
            self._known |= {(self._key(seed.config), seed.config.seed): seed for seed in seeds}
            self._queue.extend(seeds)
            self._search.expect(np.array(self._key(self._queue[0].config)), asked=asked)
        return self._queue.popleft()

    @property
    def continues(self) -> bool:
        """Whether trials may be trained for more than one round."""
        return most_rounds(self.context.spec) > 1

    @property
    def exhausted(self) -> bool:
        """Whether the gap is small enough, or nothing more is to be learnt."""
        return not self._queue and (self._search.finished or self._spent)

    @property
    def gap(self) -> Gap:
        """How well the frontier is known."""
        return self._search.gap

    @property
    def reason(self) -> str | None:
        """Why it ended, or None."""
        return self._search.reason or ("budget" if self._spent else None)

    @property
    def _spent(self) -> bool:
        """Whether a trial more, with every seed, would go beyond the budget."""
        return self.context.spending.spent(len(self.context.spec.seeds))

    @property
    def note(self) -> str | None:
        """The gap, and why the search ended."""
        known = self._search.gap
        size = f"{known.gap:.3f} nats" if np.isfinite(known.gap) else "not known yet"
        ended = "" if self.reason is None else f", ended: {self.reason}"
        return f"{known.kind} gap {size} after {known.trials} trials (tolerance {self._search.tolerance:g}){ended}"

    def observe(self, trial: PlannedTrial, row: Row | None) -> None:
        """Tell the search of a constrained trial when all its seeds have ended, of any other at once."""
        ended = pa.Table.from_pylist([] if row is None else [row], schema=trials_schema(Names.of(self._base)))
        [point] = points_of(Trials.of(ended, self._base), self._coordinates) or [None]
        if trial.config.method != "constrained":
            if box_goes_on(trial, row):
                return  # another round takes the place of what it is now
            if point is not None:
                self._gaps.append(self._search.tell(TrialRecord(thresholds=None, point=point)))
            return
        key = self._key(trial.config)
        seeds = self._settings.setdefault(key, {})
        # What has ended in this run has left its state; what had before may have lost it.
        before = trial.trial_id in self.context.finished and trial.trial_id not in self.context.continuable
        goes_on = row if row is not None and row["status"] == "succeeded" and not before else {}
        seeds[trial.trial_id] = _Ended(
            point=point,
            rounds=1 if row is None else rounds_of(row),
            distance=goes_on.get("distance"),
            before=goes_on.get("distance_before"),
        )
        if self._waiting.get(key, set()) <= seeds.keys():
            self._gaps.append(self._search.tell(_record(key, list(seeds.values()))))

    def table(self) -> pa.Table:
        """Return one row per setting that ended: the gap, where it is, and the bounds there."""
        return bounds_table(self._gaps, [name for name, _ in self._coordinates])

    def _seeds(self, written: Mapping[str, float]) -> list[PlannedTrial]:
        """Return the trials at thresholds, one for each seed; all of them are waited for."""
        fresh = [constrained_trial(self._base, written, seed) for seed in self.context.spec.seeds]
        key = self._key(fresh[0].config)
        trials = [self._known.get((key, trial.config.seed), trial) for trial in fresh]
        self._waiting.setdefault(key, set()).update(trial.trial_id for trial in trials)
        return trials

    def _key(self, config: TrialConfig) -> tuple[float, ...]:
        """Return the thresholds of a trial in reward units."""
        found = resolve_thresholds(config, self.context.baseline)
        return tuple(found[name] for name, _ in self._coordinates)

    def _named(self, thresholds: FloatArray) -> dict[str, float]:
        return {name: float(value) for (name, _), value in zip(self._coordinates, thresholds, strict=True)}


def threshold_box(spec: SweepSpec, base: TrialConfig, baseline: BaselineStatistics) -> Box:
    """Return the ranges of the spec's thresholds, in reward units."""
    low, high, spread = [], [], []
    kept = {c.name: c for c in base.constraints}
    for constraint in spec.constraints:
        assert isinstance(constraint, RewardConstraint), "a certified search has thresholds of rewards only"
        config = kept[constraint.label]
        ends = (
            (constraint.at_least.low, constraint.at_least.high)
            if isinstance(constraint.at_least, ThresholdRange)
            else (constraint.values[0],) * 2
        )
        written = [absolute_threshold(config.model_copy(update={"bound": end}), baseline) for end in ends]
        low.append(written[0])
        high.append(written[1])
        spread.append(baseline.rewards[config.target].std)
    return Box(low=np.array(low), high=np.array(high), spread=np.array(spread))
