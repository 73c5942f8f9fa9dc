"""Threads that run in turn, and meet where they ask for the same: it is answered for all at once."""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Answer = Callable[[Sequence[Any]], Sequence[Any]]
"""From what was asked with one key to the answers, in the same order."""


@dataclass(eq=False, kw_only=True)
class _Seat:
    """A thread that waits for its turn, or for an answer."""

    key: Hashable = None
    place: float = 0.0
    asked: Any = None
    answer: Answer | None = None
    found: Any = None
    error: BaseException | None = None
    turn: threading.Event = field(default_factory=threading.Event)


class Meeting:
    """One thread runs at a time, until it asks or ends; what all have asked is answered when none can run.

    All answers are found by one thread of the meeting's own: gradients are summed in the order in which a thread made
    their graph, and that is then the order of the questions, whoever asked them.

    Questions with one key are answered together. Of several keys that comes first whose place is lowest: who is behind
    catches up, and from then on asks with the others.
    """

    def __init__(self) -> None:
        """Begin with nobody."""
        self._lock = threading.Lock()
        self._answering = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._taken = False
        self._ready: deque[_Seat] = deque()
        self._asked: list[_Seat] = []

    @contextmanager
    def seat(self) -> Iterator[None]:
        """Take part within the block, which begins when it is this thread's turn."""
        seat = _Seat()
        with self._lock:
            if self._taken:
                self._ready.append(seat)
            else:
                self._taken = True
                seat.turn.set()
        seat.turn.wait()
        try:
            yield
        finally:
            self._pass_on()

    def ask(self, key: Hashable, place: float, asked: Any, answer: Answer) -> Any:
        """Return the answer, which may have been found for others as well.

        Args:
            key: Of what can be answered together.
            place: How far the thread is between two meetings of all.
            asked: What is asked.
            answer: Finds the answers; the same for one key.

        Raises:
            BaseException: What the answer raised, in every thread that asked.
        """
        seat = _Seat(key=key, place=place, asked=asked, answer=answer)
        with self._lock:
            self._asked.append(seat)
        self._pass_on()
        seat.turn.wait()
        if seat.error is not None:
            raise seat.error
        return seat.found

    def _pass_on(self) -> None:
        """Give the turn to the next thread; where none can run, answer first."""
        while True:
            with self._lock:
                if self._ready:
                    self._ready.popleft().turn.set()
                    return
                if not self._asked:
                    self._taken = False
                    return
                first = min(self._asked, key=lambda seat: seat.place)
                group = [seat for seat in self._asked if seat.key == first.key]
                self._asked = [seat for seat in self._asked if seat.key != first.key]
            self._answering.submit(_answer, group).result()
            with self._lock:
                self._ready.extend(group)


def _answer(group: Sequence[_Seat]) -> None:
    """Answer what a group has asked."""
    answer = group[0].answer
    assert answer is not None, "a question"
    try:
        for seat, found in zip(group, answer([seat.asked for seat in group]), strict=True):
            seat.found = found
    except BaseException as error:  # noqa: BLE001 - raised where it was asked
        for seat in group:
            seat.error = error
