"""What part of a process each has that runs in it."""

from contextlib import ExitStack

import pytest

from orchestrator.execution.trials.shares import Shares


class Clock:
    """Seconds that the test tells."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_shares_follow_who_runs_beside_whom() -> None:
    clock = Clock()
    shares = Shares(clock)
    with shares.taken() as first:
        assert first() == 1.0
        clock.now += 10.0
        with ExitStack() as beside:
            second, third = (beside.enter_context(shares.taken()) for _ in range(2))
            assert second() == pytest.approx(1 / 3)
            clock.now += 30.0
            assert first() == pytest.approx((10 + 10) / 40)
            seconds = [30.0 * second(), 30.0 * third()]
        clock.now += 20.0
        seconds.append(60.0 * first())
    assert seconds == pytest.approx([10.0, 10.0, 40.0]), "of 60 seconds of the process"
    clock.now += 5.0
    with shares.taken() as later:
        clock.now += 1.0
        assert later() == 1.0


def test_who_fails_leaves() -> None:
    clock = Clock()
    shares = Shares(clock)
    with pytest.raises(RuntimeError), shares.taken():
        raise RuntimeError
    with shares.taken() as share:
        clock.now += 1.0
        assert share() == 1.0
