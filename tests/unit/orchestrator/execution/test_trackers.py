"""Trackers behind their queue: order, repeated steps, trouble, and the end."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.processes import wait_for

from orchestrator.execution.trackers import outlet
from orchestrator.execution.trackers.base import TrackedTrial, Tracker, plain_row
from orchestrator.execution.trackers.callback import step_metrics

TRIAL = TrackedTrial(sweep="s", trial_id="t", method="constrained", parameters={"seed": 0})


def opened() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@dataclass
class Scripted(Tracker):
    """Keeps what it gets; fails the first ``failures`` times, and waits for ``gate``."""

    failures: int = 0
    got: list[tuple[Any, ...]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=opened)
    name = "scripted"

    def _take(self, *what: Any) -> None:
        self.gate.wait(60)
        if self.failures > 0:
            self.failures -= 1
            raise ConnectionError("refused\nsecond line")
        self.got.append(what)

    def begin(self, trial: TrackedTrial) -> None:
        self._take("begin", trial.trial_id)

    def log(self, trial: TrackedTrial, step: int, metrics: Mapping[str, float]) -> None:
        self._take("log", step, metrics["kl"])

    def end(self, trial: TrackedTrial, status: str, row: Mapping[str, Any]) -> None:
        self._take("end", status, dict(row))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet, "_FIRST_PAUSE_SECONDS", 0.01)


def run(tracker: Scripted, steps: list[int]) -> list[str]:
    said: list[str] = []
    fed = outlet.Outlet(tracker, said.append)
    fed.begin(TRIAL)
    for step in steps:
        fed.log("t", step, {"kl": step / 10})
    fed.end("t", "interrupted", lambda: {"status": "succeeded", "kl": 0.5})
    fed.close()
    return said


def test_everything_comes_once_in_order() -> None:
    tracker = Scripted()
    assert run(tracker, [10, 20, 10, 20, 30]) == []  # a retried trial says again what it has said
    assert tracker.got == [
        ("begin", "t"),
        ("log", 10, 1.0),
        ("log", 20, 2.0),
        ("log", 30, 3.0),
        ("end", "succeeded", {"status": "succeeded", "kl": 0.5}),
    ]


def test_passing_trouble_loses_nothing_and_is_said_once() -> None:
    tracker = Scripted(failures=3)
    said = run(tracker, [10, 20])
    assert [what for what, *_ in tracker.got] == ["begin", "log", "log", "end"]
    assert said == [
        "scripted could not log a trial's begin (refused); it is tried again, and the sweep goes on"
    ]


def test_a_tracker_that_is_gone_is_left_behind_with_a_count() -> None:
    said = run(Scripted(failures=10**6), [10, 20])
    assert len(said) == 2
    assert said[1] == "scripted has not got 4 of what was to be logged; the results have it all"


def test_a_tracker_that_hangs_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet, "_END_SECONDS", 0.2)
    monkeypatch.setattr(outlet, "_MOST_WAITING", 50)
    tracker, said = Scripted(), list[str]()
    tracker.gate.clear()
    began = time.monotonic()
    fed = outlet.Outlet(tracker, said.append)
    fed.begin(TRIAL)
    for step in range(1000):
        fed.log("t", step, {"kl": 0.0})
    fed.close()
    assert time.monotonic() - began < 30
    assert len(fed._events) <= 50
    assert "has not got" in said[-1]
    tracker.gate.set()
    wait_for(lambda: tracker.got, 30, "its thread goes on")
    assert tracker.got[0] == ("begin", "t"), "the oldest steps are left out, not the beginning"


def test_a_trial_that_did_not_end_is_ended_as_interrupted() -> None:
    tracker = Scripted()
    fed = outlet.Outlet(tracker, print)
    fed.begin(TRIAL)
    fed.close()
    assert tracker.got == [("begin", "t"), ("end", "interrupted", {})]


def test_only_finite_numbers_of_the_trial_are_metrics() -> None:
    report = {
        "step": 3,
        "kl": 0.5,
        "kkt_residual": float("inf"),
        "reward_clip": 1,
        "pid": 7,
        "time_total_s": 1.0,
        "config": {},
    }
    assert step_metrics(report) == {"kl": 0.5, "reward_clip": 1.0}
    row = {"trial_id": "t", "status": "failed", "kl": None, "feasible": False, "steps": 3, "notes": ["a"]}
    assert plain_row(row) == {"status": "failed", "feasible": False, "steps": 3}
