"""How much of a process each of those has that run in it, over time."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Shares:
    """Counts, of all that run at a time, each alike: shares of any stretch of time sum to 1 where anything runs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nobody; the clock tells seconds."""
        self._clock, self._lock = clock, threading.Lock()
        self._last = 0.0
        self._held: dict[int, float] = {}

    @contextmanager
    def taken(self) -> Iterator[Callable[[], float]]:
        """Take part within the block; tells the mean share since it began, 1 alone and ½ beside one other."""
        key, begun = object(), self._advanced()
        with self._lock:
            self._held[id(key)] = 0.0

        def share() -> float:
            passed = self._advanced() - begun
            with self._lock:
                return self._held[id(key)] / passed if passed > 0 else 1.0 / len(self._held)

        try:
            yield share
        finally:
            self._advanced()
            with self._lock:
                del self._held[id(key)]

    def _advanced(self) -> float:
        """Deal out the time since the last look; returns the time now, seconds."""
        with self._lock:
            now = self._clock()
            for key in self._held:
                self._held[key] += (now - self._last) / len(self._held)
            self._last = now
            return now
