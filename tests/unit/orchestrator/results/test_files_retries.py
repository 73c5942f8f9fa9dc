"""Patience: which errors pass, how long it waits, what it says."""

import errno
import logging
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import UsageError
from orchestrator.results.files.retries import TornReadError, passing, patience_here
from trainers import patience as waiting
from trainers.patience import VARIABLE, Patience, brief

patiently = partial(waiting.patiently, passes=passing)

DURING = "When reading information for key 'a' in bucket 'b': AWS Error {} during HeadObject operation: x"


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        """Begin anywhere."""
        self.now = 1000.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += max(seconds, 1e-9)  # less would be lost in rounding, and no real clock stands still


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(waiting, "time", made)
    return made


class Flaky:
    """Fails a number of times, then answers."""

    def __init__(self, times: float, error: Exception) -> None:
        """Raise ``error`` in the first ``times`` calls."""
        self.times, self.error, self.calls = times, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return "done"


class StatusError(Exception):
    def __init__(self, status: int) -> None:
        """Carry the status of an answer, as such clients do."""
        super().__init__("of a client behind fsspec")
        self.status = status


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        ConnectionResetError(),
        TimeoutError(),
        OSError(errno.ETIMEDOUT, "timed out"),
        OSError(errno.ENETUNREACH, "unreachable"),
        OSError(DURING.format("NETWORK_CONNECTION")),
        OSError(DURING.format("SLOW_DOWN")),
        OSError(DURING.format("SERVICE_UNAVAILABLE")),
        OSError(DURING.format("INTERNAL_FAILURE")),
        OSError(DURING.format("UNKNOWN (HTTP status 503)")),
        OSError(DURING.format("UNKNOWN (HTTP status 429)")),
        OSError("google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last message of …"),
        StatusError(502),
        TornReadError("3 of 5 bytes came"),
    ],
    ids=str,
)
def test_errors_that_pass(error: Exception) -> None:
    assert passing(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "connection refused"),
        PermissionError(errno.EACCES, "no"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(DURING.format("ACCESS_DENIED")),
        OSError(DURING.format("NO_SUCH_BUCKET")),
        OSError(DURING.format("NO_SUCH_KEY")),
        OSError(DURING.format("SIGNATURE_DOES_NOT_MATCH")),
        OSError(DURING.format("UNKNOWN (HTTP status 400)")),
        OSError(DURING.format("UNKNOWN (HTTP status 507)")),
        OSError("google::cloud::Status(PERMISSION_DENIED: …"),
        StatusError(403),
        StatusError(404),
        ValueError("a defect"),
    ],
    ids=str,
)
def test_errors_that_stay(error: Exception, clock: Clock) -> None:
    assert not passing(error)
    operation = Flaky(1, error)
    with pytest.raises(type(error)):
        patiently(operation, "write x", Patience())
    assert operation.calls == 1
    assert clock.waits == []


def test_waits_double_up_to_a_limit_with_jitter(clock: Clock) -> None:
    patience = Patience(seconds=10_000, first=1.0, longest=8.0)
    assert patiently(Flaky(8, ConnectionResetError()), "write x", patience) == "done"
    for wait, most in zip(clock.waits, [1, 2, 4, 8, 8, 8, 8, 8], strict=True):
        assert most / 2 <= wait <= most
    assert len({wait / most for wait, most in zip(clock.waits[3:], [8] * 5, strict=True)}) > 1, "no jitter"


@given(
    seconds=st.floats(0, 60),
    first=st.floats(0.1, 5),
    longest=st.floats(1, 60),
)
def test_it_gives_up_when_patience_ends_and_not_before(seconds: float, first: float, longest: float) -> None:
    clock = Clock()
    operation = Flaky(float("inf"), ConnectionResetError("the last"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waiting, "time", clock)
        with pytest.raises(ConnectionResetError, match="the last"):
            patiently(
                operation, "write x", Patience(seconds=seconds, first=first, longest=max(first, longest))
            )
    assert sum(clock.waits) == pytest.approx(seconds, abs=1e-5)
    assert operation.calls == len(clock.waits) + 1


def test_each_outage_has_the_whole_patience(clock: Clock) -> None:
    class Twice(Flaky):
        def __call__(self) -> str:
            clock.now += 100  # a long upload, which is not waiting
            return super().__call__()

    assert patiently(Twice(2, ConnectionResetError()), "write x", Patience(seconds=150)) == "done"


def test_a_long_wait_is_told_and_so_is_its_end(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    error = OSError(DURING.format("NETWORK_CONNECTION") + " (Request ID: abc)")
    patiently(Flaky(12, error), "write s3://b/a", Patience(seconds=300))
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("cannot write s3://b/a, trying for 29")
    assert "NETWORK_CONNECTION" in said[0]
    assert "Request ID" not in said[0]
    assert said[-1].startswith("the storage answers again, after ")
    assert 3 <= len(said) <= 2 + sum(clock.waits) / 30 + 1


def test_a_short_wait_is_not(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    patiently(Flaky(2, ConnectionResetError()), "write x", Patience())
    assert clock.waits
    assert caplog.records == []


def test_patience_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert patience_here() == Patience()
    monkeypatch.setenv(VARIABLE, "12.5")
    assert patience_here() == Patience(seconds=12.5, full=12.5)
    for wrong in ("soon", "-1", "nan", "inf"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(UsageError, match=f"{VARIABLE} must be a number of seconds"):
            patience_here()


def test_brief_is_one_line() -> None:
    assert brief(OSError("first\nsecond")) == "first"
    assert brief(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device"
    assert brief(TimeoutError()) == "TimeoutError"
