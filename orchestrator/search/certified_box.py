"""The certified search with one adapter for the whole box in place of trials: it asks for answers, not for training.

    one trial for each seed, with a design of answers
      -> bounds U and L of ``search.certified``, an answer being a trial at its thresholds
      -> thresholds where they are farthest apart, put to the adapter of every seed: an answer, measured held out
      -> where an answer leaves its own thresholds open for want of training: another round, if any is left, whose
         thresholds are denser where answers pay too much, and the answers of what it leaves behind

An adapter that a round replaces is gone, and nothing can be sampled from its answers: they are left out of the bounds.
All that is known lies in ``trials/`` and ``answers/``; what is stored is told at once, and never asked again.
"""

from collections import deque

import numpy as np
import pyarrow as pa

from orchestrator.frontier.bounds import FrontierPoint, bounded, mean_point, points_of, pretrained_point
from orchestrator.frontier.trials import Trials
from orchestrator.plan import PlannedTrial, base_config
from orchestrator.results.schema import Names, bounds_table, rounds_of, trials_schema
from orchestrator.search.base import Question, Row, Search, SearchContext
from orchestrator.search.box_rounds import box_goes_on
from orchestrator.search.certified import CertifiedSearch, Gap, TrialRecord
from orchestrator.search.certified_plan import DEVIATIONS, threshold_box
from orchestrator.spec import max_trials

Key = tuple[float, ...]
"""Thresholds, reward units."""


class CertifiedBox(Search):
    """Asks the trials for a box, one for each seed, for thresholds where the frontier is known worst."""

    def __init__(self, context: SearchContext) -> None:
        """Begin; boxes of the plan that are not finished count as running."""
        super().__init__(context)
        self._base = base_config(context.spec)
        self._coordinates = bounded(self._base)
        self._box = threshold_box(context.spec, self._base, context.baseline)
        self._boxes = {t.trial_id: t for t in context.plan.trials if t.config.method == "frontier"}
        self._training = set(self._boxes)
        """Ids of those that have not ended, or are trained further."""
        self._rows: dict[str, Row] = {}
        """Of those that answer."""
        self._answers: dict[str, dict[Key, FrontierPoint | None]] = {}
        """Of the adapters that there are; None of a question that failed."""
        self._left: set[str] = set()
        """Ids of those that have left what another round goes on from."""
        self._queue: deque[PlannedTrial] = deque()
        self._asked: Key = ()
        self._waiting: set[str] = set()
        """Ids of those that have not answered it."""
        self._beside: list[FrontierPoint] = []
        """Of trials with weights."""
        self._gaps: list[Gap] = []
        """After every answer, and trial with weights, of those that there are."""
        self._told = 0
        """Answers that the search knows."""
        self._others = False
        """Whether there are other answers than it knows."""
        self._search = self._anew()
        for trial in context.plan.trials:
            if trial.trial_id in context.finished:
                self.observe(trial, context.finished[trial.trial_id])
        self._left = set(context.continuable)

    def propose(self) -> PlannedTrial | None:
        """Return the next adapter to be asked, or to be trained further."""
        if not self._runs and self.reason is None:
            self._choose()
        return self._queue.popleft() if self._queue else None

    @property
    def exhausted(self) -> bool:
        """Whether the gap is small enough, or nothing more is to be learnt."""
        return not self._runs and self.reason is not None

    @property
    def _runs(self) -> bool:
        return bool(self._queue or self._training or self._waiting)

    def _choose(self) -> None:
        """Queue another round, or the next question to all."""
        rounds = self._further()
        if not self.context.spending.allows(len(rounds)):
            return
        if rounds:
            self._training |= {trial.trial_id for trial in rounds}
            self._queue.extend(rounds)
            return
        asked = self._search.ask()
        assert asked is not None, "it has not ended, and waits for nothing"
        place = np.clip(asked, self._box.low, self._box.high)
        self._search.expect(place, asked=asked)
        self._asked = tuple(place.tolist())
        named = {name: value for (name, _), value in zip(self._coordinates, self._asked, strict=True)}
        # A driver that died between two seeds has left the answers of some.
        for name in [name for name, known in self._answers.items() if self._asked not in known]:
            self._waiting.add(name)
            self._queue.append(Question(trial_id=name, config=self._boxes[name].config, thresholds=named))

    def _further(self) -> list[PlannedTrial]:
        """Return the adapters to be trained for another round: those that fewest were."""
        able = {name: rounds_of(row) for name, row in self._rows.items() if self._goes_on(name, row)}
        if not able or not self._search.undertrained:
            return []
        return [self._boxes[name] for name, rounds in able.items() if rounds == min(able.values())]

    def _goes_on(self, name: str, row: Row) -> bool:
        """Whether an adapter may have another round: not after one that came to nothing better."""
        return name in self._left and box_goes_on(self._boxes[name], row) and not _in_vain(row)

    @property
    def continues(self) -> bool:
        """Whether adapters may be trained for more than one round."""
        return any(settings.rounds > 1 for _, settings in self.context.spec.frontiers)

    @property
    def reason(self) -> str | None:
        """Why nothing more is begun, or None."""
        if not self._rows:
            return None if self._training else "nothing left"
        reason = self._search.reason
        if reason in {"tolerance", "max_trials"}:
            return reason
        rounds = self._further()
        if reason is not None and not rounds:
            return reason
        return "budget" if self.context.spending.spent(len(rounds)) else None

    @property
    def gap(self) -> Gap:
        """How well the frontier is known."""
        return self._search.gap

    @property
    def note(self) -> str:
        """The gap, and why the search ended."""
        known, answers = self._search.gap, self._told
        size = f"{known.gap:.3f} nats" if answers and np.isfinite(known.gap) else "not known yet"
        rounds = max(map(rounds_of, self._rows.values()), default=1)
        trained = "" if rounds == 1 else f" and {rounds} rounds"
        ended = f", ended: {self.reason}" if self.exhausted else ""
        return (
            f"{known.kind} gap {size} after {answers} answers{trained} "
            f"(tolerance {self._search.tolerance:g}){ended}"
        )

    def table(self) -> pa.Table:
        """Return one row per thresholds that were answered: the gap, where it is, and the bounds there."""
        return bounds_table(self._gaps, [name for name, _ in self._coordinates])

    def observe(self, trial: PlannedTrial, row: Row | None) -> None:
        """Take the answers of an adapter that has ended, or the point of any other trial."""
        name = trial.trial_id
        if name not in self._boxes:
            if row is not None and (point := self._point(row)) is not None:
                self._beside.append(point)
                self._gaps.append(self._search.tell(_beside(point)))
            return
        self._training.discard(name)
        if row is not None and row["status"] == "succeeded":
            self._others |= name not in self._rows or not _in_vain(row)
            self._rows[name] = row
            self._left.add(name)
            self._answers[name] = {
                tuple(found[f"threshold_{each}"] for each, _ in self._coordinates): self._point(found)
                for found in self.context.answers(name)
            }
        if self._training or not self._others:
            return
        self._others = False
        self._told = 0
        self._search = self._anew()
        first, *others = self._answers.values() or [{}]
        for key in first:
            if all(key in known for known in others):
                self._tell(key)

    def answered(self, question: Question, row: Row | None) -> None:
        """Tell the search of thresholds when all adapters have answered them."""
        self._answers[question.trial_id][self._asked] = None if row is None else self._point(row)
        self._waiting.discard(question.trial_id)
        if not self._waiting:
            self._tell(self._asked)

    def _anew(self) -> CertifiedSearch:
        """Return the search without any answer, and forget what gaps those had left."""
        search = CertifiedSearch(
            self._box,
            pretrained_point(self.context.pretrained, self._coordinates),
            tolerance=self._tolerance,
            max_trials=max_trials(self.context.spec),
            deviations=DEVIATIONS,
            retries=0,  # the same question has the same answer
        )
        self._gaps = [search.tell(_beside(point)) for point in self._beside]
        return search

    def _tell(self, key: Key) -> None:
        """Tell it of thresholds: the mean of the seeds."""
        points = [point for known in self._answers.values() if (point := known[key]) is not None]
        record = TrialRecord(thresholds=np.array(key), point=mean_point(points) if points else None)
        self._told += 1
        self._gaps.append(self._search.tell(record))

    def _point(self, row: Row) -> FrontierPoint | None:
        """Return the point of a row of ``trials/`` or ``answers/``, whose tangent is that of the nearest optimum."""
        known = {"method": "frontier", "seed": 0, "status": "succeeded", **row}
        for name, _ in self._coordinates:
            if (price := row.get(f"nearest_{name}")) is not None:
                known[f"multiplier_{name}"] = price
        table = pa.Table.from_pylist([known], schema=trials_schema(Names.of(self._base)))
        [point] = points_of(Trials.of(table, self._base), self._coordinates) or [None]
        return point

    @property
    def _tolerance(self) -> float:
        asked = self.context.spec.search.tolerance
        assert asked is not None, "a certified search has a tolerance"
        return asked


def _in_vain(row: Row) -> bool:
    """Whether its last round came to nothing better: the adapter, and its answers, are what they were.

    A row whose thresholds cost nothing is of the pretrained model, at no distance, and does not tell.
    """
    return rounds_of(row) > 1 and bool(row["distance"]) and row["distance_before"] == row["distance"]


def _beside(point: FrontierPoint) -> TrialRecord:
    """Return what a search is told of a trial with weights."""
    return TrialRecord(thresholds=None, point=point)
