"""A tracker behind a queue: whatever it does, no trial waits for it and none fails with it."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator.execution.trackers.base import TrackedTrial, Tracker, Value

_MOST_WAITING = 20_000
"""Events; the oldest steps go first when a tracker has been out of reach for that long."""
_TRIES = 5
_FIRST_PAUSE_SECONDS = 1.0
_END_SECONDS, _FAILING_SECONDS = 30.0, 5.0
"""How long the end of a run waits for a tracker to catch up, and for one in trouble."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    what: str
    """For messages."""
    write: Callable[[], object]
    step: bool = False
    """It may be left out: a later one says more."""


class Outlet:
    """Feeds one tracker from a thread of its own.

    An event that fails is tried again with growing pauses, then left out. It is said once that a tracker has
    trouble, and at the end how much it has not got; the sweep's own files have everything.
    """

    def __init__(self, tracker: Tracker, say: Callable[[str], None]) -> None:
        """Feed ``tracker``, and tell ``say`` about trouble."""
        self._tracker, self._say = tracker, say
        self._events: deque[_Event] = deque()
        self._wake = threading.Condition()
        self._closing = threading.Event()
        self._failing = False
        self._deadline = float("inf")
        self._said = False
        self._lost = 0
        self._steps: dict[str, int] = {}
        self._running: dict[str, TrackedTrial] = {}
        self._begun: dict[str, int] = {}
        """The last step that the tracker had of a trial when it began."""
        self._thread = threading.Thread(target=self._feed, name=f"cdsweep-{tracker.name}", daemon=True)
        self._thread.start()

    def begin(self, trial: TrackedTrial) -> None:
        """A trial was placed."""
        self._running[trial.trial_id] = trial
        self._put(_Event(what="a trial's begin", write=lambda: self._begin(trial)))

    def log(self, trial_id: str, step: int, metrics: Mapping[str, float]) -> None:
        """A trial reported; what a retried one says again is left out."""
        trial = self._running.get(trial_id)
        if trial is None or step <= self._steps.get(trial_id, -1):
            return
        self._steps[trial_id] = step

        def write() -> None:
            if step > self._begin(trial):
                self._tracker.log(trial, step, metrics)

        self._put(_Event(what="a step", write=write, step=True))

    def end(self, trial_id: str, status: str, row: Callable[[], Mapping[str, Value]]) -> None:
        """A trial ended; ``row`` is read here, not by whoever waits for the next trial."""
        trial = self._running.pop(trial_id, None)
        if trial is not None:

            def write() -> None:
                found = row()
                self._begin(trial)
                self._tracker.end(trial, str(found.get("status", status)), found)
                self._begun.pop(trial.trial_id, None)

            self._put(_Event(what="a trial's end", write=write))

    def close(self) -> None:
        """End what still runs, and wait for the tracker: not long where it does not answer."""
        seconds = _FAILING_SECONDS if self._failing else _END_SECONDS
        for trial_id in list(self._running):
            self.end(trial_id, "interrupted", dict)
        with self._wake:
            self._deadline = time.monotonic() + seconds
            self._closing.set()
            self._wake.notify()
        self._thread.join(seconds)
        waiting = len(self._events) + self._lost + (1 if self._thread.is_alive() else 0)
        if waiting:
            self._say(
                f"{self._tracker.name} has not got {waiting} of what was to be logged; the results have it all"
            )

    def _begin(self, trial: TrackedTrial) -> int:
        """Begin a trial, unless it has begun: the event that should have done it may have been left out."""
        if trial.trial_id not in self._begun:
            self._begun[trial.trial_id] = self._tracker.begin(trial)
        return self._begun[trial.trial_id]

    def _put(self, event: _Event) -> None:
        with self._wake:
            if len(self._events) >= _MOST_WAITING:
                oldest = next((e for e in self._events if e.step), self._events[0])
                self._events.remove(oldest)
                self._lost += 1
            self._events.append(event)
            self._wake.notify()

    def _feed(self) -> None:
        while True:
            with self._wake:
                while not self._events and not self._closing.is_set():
                    self._wake.wait()
                if not self._events:
                    break
                event = self._events.popleft()
            if not self._written(event):
                self._lost += 1
        self._written(_Event(what="the end", write=self._tracker.close))

    def _written(self, event: _Event) -> bool:
        """Write an event, patiently; returns whether it was written."""
        pause = _FIRST_PAUSE_SECONDS
        for attempt in range(_TRIES):
            try:
                event.write()
            except Exception as error:  # noqa: BLE001 - a tracker may raise anything, and nothing of it reaches the trials
                self._trouble(event.what, error)
                if attempt + 1 == _TRIES or time.monotonic() + pause > self._deadline:
                    return False
                self._closing.wait(pause)
                pause *= 2
            else:
                self._failing = False
                return True
        return False

    def _trouble(self, what: str, error: Exception) -> None:
        self._failing = True
        if not self._said:
            self._said = True
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._say(
                f"{self._tracker.name} could not log {what} ({reason}); it is tried again, and the sweep goes on"
            )
