"""Requests to stop, each in a process of its own: answered once, obeyed wherever the process is."""

import os
import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """\
import sys, threading, time
from orchestrator.execution import signals

def say(line):
    sys.stdout.write(f"{{line}}\\n")  # at once: another thread may say something, too
    sys.stdout.flush()

def ignored():
    try:
        say("ready")
        time.sleep(120)
    except KeyboardInterrupt:
        say("broken off")
        time.sleep(120)

signals.LEAVE_SECONDS = {seconds}
stop = signals.Stop(say)
stop.goes_on = "take it up again"
try:
    with stop.listening():
        {body}
except KeyboardInterrupt:
    say("interrupted")
say(f"wanted: {{stop.wanted()}}")
"""


def told(body: str, *, signals: int, seconds: float = 60.0) -> tuple[int, list[str]]:
    """Exit code and lines of a program that gets so many signals, each once it has answered the one before."""
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            PROGRAM.format(
                body=body if "ignored" in body or "ready" in body else f"say('ready'); {body}",
                seconds=seconds,
            ),
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        for _ in range(signals):
            os.kill(process.pid, signal.SIGINT)
            while lines[-1] and "stopping" not in "".join(lines):
                lines.append(process.stdout.readline())
        lines += process.stdout.read().splitlines(keepends=True)
    return process.returncode, sorted("".join(lines).splitlines()[1:])


ANSWER = "stopping; what runs keeps its last checkpoint (Ctrl-C again leaves at once)"


JOINED = (
    "thread = threading.Thread(target=time.sleep, args=(1,)); thread.start(); thread.join(); time.sleep(120)"
)


@pytest.mark.parametrize("body", ["time.sleep(120)", "threading.Event().wait()", JOINED])
def test_the_first_request_breaks_off_what_is_going_on(body: str) -> None:
    assert told(body, signals=1) == (130, ["interrupted", ANSWER, "wanted: True"])


def test_the_second_signal_leaves_at_once() -> None:
    code, lines = told("ignored()", signals=2)
    assert code == 130
    assert set(lines) <= {ANSWER, "broken off"}, "nothing of what would have come later"


def test_a_process_that_cannot_end_leaves_in_time() -> None:
    assert told("ignored()", signals=1, seconds=0.5) == (130, ["broken off", ANSWER, "take it up again"])


@pytest.mark.parametrize(("last", "said"), [("say('written')", ["written"]), ("time.sleep(120)", [])])
def test_what_is_written_last_is_written_and_holds_nobody_up(last: str, said: list[str]) -> None:
    body = f"stop.leaving = lambda: {last}; ignored()"
    assert told(body, signals=1, seconds=0.5) == (
        130,
        sorted(["broken off", ANSWER, "take it up again", *said]),
    )


def test_the_way_out_has_an_end_too() -> None:
    """Such as threads that are waited for, and what is registered with atexit."""
    body = "threading.Thread(target=time.sleep, args=(120,)).start(); say('ready'); time.sleep(120)"
    assert told(body, signals=1, seconds=0.5) == (
        130,
        ["interrupted", ANSWER, "take it up again", "wanted: True"],
    )


def test_a_request_that_is_no_signal_is_one_too() -> None:
    body = "threading.Timer(0.1, stop.asked.set).start(); time.sleep(120)"
    assert told(body, signals=0) == (130, ["interrupted", ANSWER, "wanted: True"])


def test_a_job_that_is_stopped_is_asked_twice_by_one_request() -> None:
    """Through the storage, and by the signal with which Ray ends it."""
    body = "threading.Timer(0.1, stop.asked.set).start(); ignored()"
    code, lines = told(body, signals=1, seconds=1.0)
    assert (code, lines) == (130, ["broken off", ANSWER, "take it up again"])


def test_afterwards_signals_are_as_before() -> None:
    from orchestrator.execution.signals import Stop  # noqa: PLC0415 - beside what it is about

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Stop(lambda _: None).listening():
        assert signal.getsignal(signal.SIGINT) != before[0]
        time.sleep(0)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    descriptor = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(descriptor)
    assert descriptor == -1
