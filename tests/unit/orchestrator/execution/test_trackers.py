"""Trackers behind their queue: order, repeated steps, trouble, and the end."""

import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from support.processes import wait_for
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from orchestrator.execution.trackers import outlet
from orchestrator.execution.trackers.base import TrackedTrial, Tracker, plain_row
from orchestrator.execution.trackers.callback import step_metrics
from orchestrator.execution.trackers.mlflow import MLflow
from orchestrator.execution.trackers.tensorboard import TensorBoard
from orchestrator.execution.trackers.wandb import Wandb, last_step
from orchestrator.spec.records.trackers import MLflowSettings, WandbSettings

TRIAL = TrackedTrial(sweep="s", sweep_id="1a2b", trial_id="t", method="constrained", parameters={"seed": 0})


def opened() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@dataclass
class Scripted(Tracker):
    """Keeps what it gets; fails the first ``failures`` times, and waits for ``gate``."""

    failures: int = 0
    has: int = -1
    """The last step from before."""
    got: list[tuple[Any, ...]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=opened)
    name = "scripted"

    def _take(self, *what: Any) -> None:
        self.gate.wait(60)
        if self.failures > 0:
            self.failures -= 1
            raise ConnectionError("refused\nsecond line")
        self.got.append(what)

    def begin(self, trial: TrackedTrial) -> int:
        self._take("begin", trial.trial_id)
        return self.has

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


def test_what_a_tracker_has_from_before_a_kill_is_not_told_again() -> None:
    tracker = Scripted(has=20)
    assert run(tracker, [10, 20, 30]) == []
    assert [what[1] for what in tracker.got if what[0] == "log"] == [30]


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


# ------------------------------------------------------------------------------------------- the real ones


def told(tracker: Tracker, steps: Iterable[int], *, sweep_id: str = "1a2b", end: str | None = None) -> int:
    """Tell a tracker of steps, as a run does that is then killed, or ends; returns what it had before."""
    trial = replace(TRIAL, sweep_id=sweep_id)
    had = tracker.begin(trial)
    for step in steps:
        tracker.log(trial, step, {"kl": step / 10, "reward_up": -step / 10})
    if end is not None:
        row = {"status": end, "kl": 1.0, "steps": 30} if end == "succeeded" else {}
        tracker.end(trial, end, row)
        tracker.close()
    return had


def test_mlflow_knows_its_steps_and_an_earlier_sweep_of_the_same_name(tmp_path: Path) -> None:
    def opened() -> MLflow:
        return MLflow(MLflowSettings(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="tests"))

    assert told(opened(), [0, 10, 20]) == -1
    assert told(opened(), [30], end="succeeded") == 20
    assert told(opened(), [], end="interrupted") == 30, "and not 30 of final_kl, which is no step"
    assert told(opened(), [0, 10], sweep_id="3c4d", end="succeeded") == -1, "removed, and run again"
    client = opened()._client
    (experiment,) = (each for each in client.search_experiments() if each.name == "tests")
    runs = {run.data.tags["sweep_id"]: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == {"1a2b", "3c4d"}
    for sweep_id, steps in (("1a2b", [0, 10, 20, 30]), ("3c4d", [0, 10])):
        history = client.get_metric_history(runs[sweep_id].info.run_id, "kl")
        assert sorted(point.step for point in history) == steps


def test_tensorboard_knows_its_steps_also_a_half_written_one(tmp_path: Path) -> None:
    def written() -> list[tuple[str, int]]:
        events = (
            event
            for file in sorted((tmp_path / "t").iterdir())
            for event in EventFileLoader(str(file)).Load()
        )
        steps = [(value.tag, event.step) for event in events for value in event.summary.value]
        return sorted((tag, step) for tag, step in steps if tag in ("ray/tune/kl", "ray/tune/reward_up"))

    assert told(TensorBoard(tmp_path), [0, 10, 20], end="interrupted") == -1
    (killed,) = (tmp_path / "t").iterdir()
    data = killed.read_bytes()
    third = [match.start() for match in re.finditer(b"ray/tune/reward_up", data)][2]
    killed.unlink()
    # Cut off in the middle of its last number, under a name of its own: names are by the second.
    killed.with_name("events.out.tfevents.1.killed").write_bytes(data[:third])
    assert len(written()) == 5
    assert told(TensorBoard(tmp_path), [20, 30], end="succeeded") == 10
    assert written() == [
        (f"ray/tune/{name}", step) for name in ("kl", "reward_up") for step in (0, 10, 20, 30)
    ]
    assert told(TensorBoard(tmp_path), [], end="interrupted") == 30


def test_wandb_knows_the_steps_of_its_offline_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    settings = WandbSettings(mode="offline")
    many = range(0, 30_000, 10)  # several blocks of its file
    assert told(Wandb(settings, tmp_path), many, end="interrupted") == -1
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert file.stat().st_size > 100_000
    # A second one in the same second would have the same folder.
    file.parent.rename(file.parent.with_name(file.parent.name.replace("offline-run-20", "offline-run-19")))
    assert told(Wandb(settings, tmp_path), [30_000], end="succeeded") == 29_990
    assert told(Wandb(settings, tmp_path), [0], sweep_id="3c4d", end="succeeded") == -1
    (file,) = tmp_path.glob("wandb/offline-run-19*/run-*.wandb")
    file.write_bytes(file.read_bytes()[:60_000])
    assert 0 < last_step(file) < 29_990, "a file that a killed writer left"
