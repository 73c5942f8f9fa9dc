"""Threads that meet: one runs at a time, who is behind catches up, and an error reaches all who asked."""

import threading
import time
from collections.abc import Callable, Sequence

import pytest

from trainers.hosts.meeting import Meeting


def together(*members: Callable[[], None]) -> None:
    threads = [threading.Thread(target=member) for member in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "nobody waits for ever"


def until(waiting: int, meeting: Meeting) -> None:
    """Wait until so many others wait for their first turn."""
    deadline = time.monotonic() + 30
    while len(meeting._ready) < waiting:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_what_all_ask_is_answered_once_and_each_has_its_own_answer() -> None:
    meeting, asked, found = Meeting(), list[list[int]](), dict[int, list[int]]()
    inside = threading.Lock()

    def answer(values: Sequence[int]) -> list[int]:
        asked.append(sorted(values))
        return [10 * value for value in values]

    def member(number: int) -> None:
        with meeting.seat():
            if not found:
                until(2, meeting)
            found[number] = []
            for _ in range(4):
                assert inside.acquire(blocking=False), "one at a time"
                inside.release()
                found[number].append(meeting.ask("key", 0.0, number, answer))

    together(*[lambda number=number: member(number) for number in range(3)])
    assert found == {number: [10 * number] * 4 for number in range(3)}
    assert asked == [[0, 1, 2]] * 4


def test_who_is_behind_catches_up_before_anybody_goes_on() -> None:
    """One that joins when another is at its third place; and another key at that place is another question."""
    meeting, places = Meeting(), list[tuple[int, int]]()

    def member(number: int, kinds: str) -> None:
        with meeting.seat():
            for place, kind in enumerate(kinds):
                if number == 0 and place == 2:
                    other.start()
                    until(1, meeting)

                def answer(values: Sequence[int], place: int = place) -> Sequence[int]:
                    places.append((place, len(values)))
                    return values

                assert meeting.ask((kind, place), float(place), number, answer) == number

    other = threading.Thread(target=member, args=(1, "aaab"))
    together(lambda: member(0, "aaaa"))
    other.join(30)
    assert places == [(0, 1), (1, 1), (0, 1), (1, 1), (2, 2), (3, 1), (3, 1)]


def test_an_error_is_raised_wherever_was_asked_and_the_others_go_on() -> None:
    meeting, ended = Meeting(), list[str]()

    def answer(values: Sequence[str]) -> Sequence[str]:
        if "bad" in values:
            raise MemoryError("too much")
        return values

    def member(name: str, key: str) -> None:
        with meeting.seat():
            if key == "x":
                with pytest.raises(MemoryError, match="too much"):
                    meeting.ask(key, 0.0, "bad", answer)
            assert meeting.ask("later", 1.0, name, answer) == name
            ended.append(name)

    together(lambda: member("a", "x"), lambda: member("b", "x"), lambda: member("c", "y"))
    assert sorted(ended) == ["a", "b", "c"]


def test_one_that_fails_leaves_the_others_their_turns() -> None:
    meeting, ended = Meeting(), list[int]()

    def member(number: int) -> None:
        with meeting.seat():
            if number == 1:
                raise KeyError(number)
            ended.append(meeting.ask("key", 0.0, number, lambda values: values))

    def failing() -> None:
        with pytest.raises(KeyError):
            member(1)

    together(lambda: member(0), failing, lambda: member(2))
    assert sorted(ended) == [0, 2]
