"""Places at servers of rewards: how many requests are under way at a time, of all processes that share them."""

import asyncio
import time
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from itertools import count
from typing import Protocol

_WAIT_SECONDS = 1.0
"""Until who waits is to ask again: one who has gone meanwhile is not waited for."""
_LOOK_SECONDS = 0.01
_GRACE_SECONDS = 5.0
"""Beyond the time of a request in which its place is given back."""


class Shared(Protocol):
    """Where processes take places together."""

    async def take(self, server: str, most: int, seconds: float) -> int | None:
        """Return a place at a server where less than ``most`` are taken, for so long at most; None: ask again."""

    async def leave(self, server: str, place: int) -> None:
        """Give a place back."""


class Places:
    """Counts them, first come, first served; whoever dies has its places for as long as a request takes, no longer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with all free; ``clock`` is in seconds."""
        self._clock, self._numbers = clock, count()
        self._taken: dict[str, dict[int, float]] = defaultdict(dict)
        """By server and place, until when."""
        self._waiting: dict[str, OrderedDict[int, None]] = defaultdict(OrderedDict)

    async def take(self, server: str, most: int, seconds: float) -> int | None:
        """See ``Shared``."""
        number, waiting = next(self._numbers), self._waiting[server]
        waiting[number] = None
        until = self._clock() + _WAIT_SECONDS
        try:
            while next(iter(waiting)) != number or self._full(server, most):
                if self._clock() >= until:
                    return None
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            del waiting[number]
        self._taken[server][number] = self._clock() + seconds
        return number

    async def leave(self, server: str, place: int) -> None:
        """See ``Shared``; one that was had for too long is gone already."""
        self._taken[server].pop(place, None)

    def _full(self, server: str, most: int) -> bool:
        now = self._clock()
        taken = self._taken[server] = {p: until for p, until in self._taken[server].items() if until > now}
        return len(taken) >= most


_shared: ContextVar[Shared | None] = ContextVar("shared", default=None)


@contextmanager
def sharing(places: Shared) -> Iterator[None]:
    """Within the block requests of this process take their places with those of others."""
    outer = _shared.set(places)
    try:
        yield
    finally:
        _shared.reset(outer)


@asynccontextmanager
async def placed(server: str, most: int, seconds: float) -> AsyncIterator[None]:
    """Within the block a request of so many seconds has its place; where none is shared, at once."""
    shared = _shared.get()
    if shared is None:
        yield
        return
    while (place := await shared.take(server, most, seconds + _GRACE_SECONDS)) is None:
        pass
    try:
        yield
    finally:
        await shared.leave(server, place)
