"""What a sweep has spent of its budget, and whether more rounds of training would still end within it."""

import heapq
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from orchestrator.results.schema import asked_gpu_seconds, rounds_of
from orchestrator.spec import SweepSpec, budgeted_hours, budgeted_wall


class Spending:
    """GPU-hours and time of the rounds that have ended, and of those under way what others took.

    A round more is expected to take the GPU-hours that others took in the mean, and as long as the longest of them.
    Until one has ended nothing is known: with a limit to GPU-hours the first runs alone; time passes whatever runs, so
    that with a limit to that alone there are as many as find room.
    """

    def __init__(
        self,
        *,
        gpu_hours: float | None = None,
        wall: float | None = None,
        clock: Callable[[], float] = lambda: 0.0,
        slots: int = 1,
        planned: Iterable[str] = (),
        finished: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Begin with what an earlier driver left.

        Args:
            gpu_hours: The most of all trials; None: unlimited.
            wall: The most seconds on ``clock``; None: unlimited.
            clock: Seconds for which the sweep has been at work.
            slots: Trials at a time.
            planned: Ids of the trials of the plan, each of which is run once at least.
            finished: Rows of those that have ended, by id.
        """
        self._gpu_hours, self._wall, self._clock, self._slots = gpu_hours, wall, clock, max(1, slots)
        self._begun = dict.fromkeys(planned, 1)
        """Rounds by trial, those under way and those of the plan included."""
        self._told: set[str] = set()
        self._hours: dict[str, tuple[int, float]] = {}
        """Rounds and GPU-hours of the trials that left a row with what they took."""
        self._running: dict[str, float] = {}
        """When each began, on the clock."""
        self._longest = 0.0
        """Seconds of a round."""
        self._beside = 0.0
        """GPU-hours of answers."""
        for trial_id, row in (finished or {}).items():
            self.end(trial_id, row)
            self._beside += asked_gpu_seconds(row) / 3600

    @classmethod
    def of(cls, spec: SweepSpec, **known: Any) -> Self:
        """Return what the budget of a spec allows; ``known`` as above."""
        return cls(gpu_hours=budgeted_hours(spec), wall=budgeted_wall(spec), **known)

    def begin(self, trial_id: str) -> None:
        """Count a round that begins; those of the plan were counted."""
        if trial_id in self._told or trial_id not in self._begun:
            self._begun[trial_id] = self._begun.get(trial_id, 0) + 1
        self._running[trial_id] = self._clock()

    def end(self, trial_id: str, row: Mapping[str, Any] | None) -> None:
        """Count what a trial took until now."""
        began = self._running.pop(trial_id, None)
        if row is None:
            return
        rounds = rounds_of(row)
        took = (row.get("gpu_seconds") or 0.0) - asked_gpu_seconds(row)
        if hours := took / 3600:  # what was given up does not say
            self._hours[trial_id] = rounds, hours
        # An earlier driver's clock said what it took here; its row has the training alone.
        took = (row.get("wall_seconds") or 0.0) / rounds if began is None else self._clock() - began
        self._longest = max(self._longest, took)
        self._told.add(trial_id)
        self._begun[trial_id] = max(rounds, self._begun.get(trial_id, 0))

    def answered(self, row: Mapping[str, Any] | None) -> None:
        """Count what an answer took; one that a trial gave when it ended is in what that took."""
        self._beside += ((row or {}).get("gpu_seconds") or 0.0) / 3600

    def allows(self, more: int) -> bool:
        """Whether so many rounds more, begun now, are expected to end within the budget."""
        return not (self._exceeds_hours(more) or self._waits(more) or self._exceeds_wall(more))

    def spent(self, more: int) -> bool:
        """Whether so many rounds more would exceed it also if all under way ended at once: it is never asked again."""
        return self._exceeds_hours(more) or self._exceeds_wall(more, at_once=True)

    def _waits(self, more: int) -> bool:
        """Whether it has to be known first what a round takes."""
        left = not self._begun.keys() <= self._told
        if self._gpu_hours is not None and not self._hours:
            return left
        unknown = self._wall is not None and not self._longest
        return unknown and left and len(self._running) + more > self._slots

    def _exceeds_hours(self, more: int) -> bool:
        rounds = sum(rounds for rounds, _ in self._hours.values())
        if self._gpu_hours is None or not rounds:
            return False
        each = sum(hours for _, hours in self._hours.values()) / rounds
        return (sum(self._begun.values()) + more) * each + self._beside > self._gpu_hours

    def _exceeds_wall(self, more: int, *, at_once: bool = False) -> bool:
        """Put rounds of the longest kind where room is first, as a list of jobs is worked off."""
        if self._wall is None:
            return False
        now = self._clock()
        under_way = (
            [] if at_once else sorted(max(now, began + self._longest) for began in self._running.values())
        )
        room = [*under_way[-self._slots :], *[now] * (self._slots - len(under_way))]
        heapq.heapify(room)
        waiting = len(self._begun.keys() - self._told - self._running.keys())
        for _ in range(more + waiting):
            heapq.heapreplace(room, room[0] + self._longest)
        return max(room) >= self._wall
