"""The process that drives a sweep: it holds the lease, and tells the journal how far the sweep is."""

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Self

from orchestrator.errors import LeaseLostError, StorageError
from orchestrator.execution.signals import LEAVE_SECONDS, Stop
from orchestrator.report.status import counts
from orchestrator.results.leases import DRIVING, HEARTBEAT_SECONDS, Lease
from orchestrator.results.store import SweepStore

_LOOKS = 4
"""For a request to stop, between two beats: each is one read of one file, and is answered within a second."""
_EXIT_SECONDS = 20.0


class Driver:
    """One at a time, from before the sweep's first file to after its last; every few seconds it writes a beat."""

    def __init__(self, store: SweepStore, say: Callable[[str], None]) -> None:
        """Drive ``store`` within the block; ``say`` is told what it waits for."""
        self.store, self._say = store, say
        self.stop = Stop(say)
        """Whether this process is to end: by a signal, by ``cdsweep stop``, or because it drives no more."""
        self.lost: LeaseLostError | None = None
        """Why this process does not drive any more."""
        self.outcome = "planned"
        """State of the sweep after the block; as it was, until it is set."""
        self.overrun = False
        """Whether it has been at work for as long as its budget allows."""
        self._worked = 0.0
        self._most: float | None = None
        self._since: float | None = None
        self._planned = 0
        self._details: Callable[[], dict[str, Any]] = dict
        self._counts = counts(store.seen())
        self._beats = self._forgotten = 0
        self._lease: Lease | None = None
        self._over, self._listening = threading.Event(), ExitStack()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        """Become the driver.

        Raises:
            UsageError: Another process is.
            StorageError: The storage cannot tell two drivers apart, or cannot be written.
        """
        with ExitStack() as listening:
            listening.enter_context(self.stop.listening())
            self._lease = self.store.take_lease(self._say)
            before = self.store.journal() or {}
            self.outcome = before.get("state", self.outcome)
            if self.outcome == DRIVING:
                self.outcome = "interrupted"
            self._planned = before.get("planned", 0)
            self._worked = before.get("seconds", 0.0)
            self._counts = {key: before.get(key, value) for key, value in self._counts.items()}
            self._write(DRIVING)
            self._listening = listening.pop_all()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Let go, unless another has taken over."""
        with self._listening:
            self._over.set()
            self._thread.join(_EXIT_SECONDS)
            if self.lost is None:
                self._write(self.outcome)

    def began(self, planned: int) -> None:
        """Take note that the sweep is there with so many trials: from now on what ends this process interrupts it."""
        self.outcome = "interrupted"
        self.stop.goes_on = (
            f"left before all had ended; `cdsweep resume {self.store.url()}` finishes what is missing"
        )
        self.stop.leaving = self._stopped
        # A driver before may have gone after a trial had replaced its row, or was asked, before it took note of that.
        touched = {*self.store.checkpointed(), *self.store.answering(), *self.store.beside()}
        if again := self.store.finished() & touched:
            self.replaced(again)
            for trial_id in again:
                self.store.settle(trial_id)
        self.noted(planned)

    def noted(self, planned: int) -> None:
        """Take note of how many trials the plan has, and of the rows that were read."""
        self._planned, self._counts = planned, counts(self.store.seen())

    def forgets(self, trial_ids: Collection[str]) -> None:
        """Have trials run again: their rows go, and whoever keeps what was read of them is told."""
        self.outcome = "interrupted"
        self.store.forget(trial_ids)
        self._forgotten += 1
        self._counts = counts(self.store.seen())

    def replaced(self, trial_ids: Collection[str]) -> None:
        """Take note that the rows of trials are others now."""
        self.store.reread(trial_ids)
        self._forgotten += 1

    @property
    def seconds(self) -> float:
        """For which the sweep has been at work, under this driver and those before."""
        since = self._since
        return self._worked + (0.0 if since is None else time.monotonic() - since)

    def spent(self, most: float | None) -> bool:
        """Whether it has been at work for as long as it may, but for the time to leave in; None: for ever."""
        self.overrun = self.overrun or (
            most is not None and self.seconds >= most - min(LEAVE_SECONDS, most / 10)
        )
        return self.overrun

    @contextmanager
    def at_work(self, most: float | None) -> Iterator[None]:
        """Within the block its clock runs; after ``most`` seconds in all the sweep is stopped, as if somebody asked."""
        self._most, self._since = most, time.monotonic()
        try:
            yield
        finally:
            self._worked, self._since = self.seconds, None

    def flush(self) -> None:
        """Write a beat now, for who reads the journal next."""
        self._write(DRIVING)

    def tells(self, details: Callable[[], dict[str, Any]]) -> None:
        """With every beat tell what runs, ``running``, and lines of how far the sweep is, ``closing``."""
        self._details = details

    def _beat(self) -> None:
        looks = 0
        while not self._over.wait(HEARTBEAT_SECONDS / _LOOKS):
            looks += 1
            try:
                if self._since is not None and self.spent(self._most):
                    self.stop.asked.set()
                if self.store.stop_requested():
                    self.stop.asked.set()
                if looks % _LOOKS == 0:
                    self._write(DRIVING)
            except LeaseLostError as error:
                self.lost, self.stop.goes_on = error, str(error)
                self.stop.asked.set()
                return
            except StorageError:  # a beat is missed: results have errors of their own
                continue

    def _stopped(self) -> None:
        """Write that it was stopped: who was asked to leave, and did, was not interrupted."""
        self._over.set()
        with suppress(StorageError):
            if self.lost is None:
                self._write("stopped")

    def _write(self, state: str) -> None:
        assert self._lease is not None, "within the block"
        self._beats += 1
        self.store.write_journal(
            {
                "lease": self._lease.number,
                "beat": self._beats,
                "owner": self._lease.owner,
                "since": self._lease.since,
                "process": self._lease.process,
                "updated_at": datetime.now(UTC).isoformat(),
                "state": state,
                "planned": self._planned,
                "seconds": self.seconds,
                "forgotten": self._forgotten,
                **self._counts,
                "running": [],
                **self._details(),
            }
        )
