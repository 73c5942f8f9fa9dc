"""Gauges: the last readings are set again while a trial runs, end with it, and never fail it."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.processes import wait_for

from orchestrator.execution import metrics
from orchestrator.report.dashboard import names
from trainers.types import StepRecord


@dataclass
class Recorder:
    """Stands in for Ray's gauges."""

    broken: bool = False
    set_to: list[tuple[str, float, dict[str, str]]] = field(default_factory=list)

    def __call__(self, metric: names.Metric) -> Any:
        outer = self

        class Gauge:
            def set(self, value: float, tags: dict[str, str]) -> None:
                if outer.broken:
                    raise RuntimeError("no core worker")
                assert set(tags) == set(metric.tags), "Ray refuses other tags"
                outer.set_to.append((metric.name, value, tags))

        return Gauge()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_REFRESH_SECONDS", 0.01)


RECORD = StepRecord(
    step=20,
    kl=0.5,
    lagrangian=1.0,
    kkt_residual=math.inf,
    learning_rate=1e-3,
    seconds=2.0,
    images_per_second=64.0,
    rewards={"clip": 0.3, "saturation": 0.1},
    violations={"clip": -0.1},
    multipliers={"clip": 2.0},
)
TAGS = {names.SWEEP: "s", names.TRIAL: "t", names.METHOD: "constrained"}


def test_readings_are_set_again_until_the_end(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(metrics, "_gauge", recorder)
    with metrics.LiveGauges(TAGS) as gauges:
        gauges.show(metrics.trial_readings(RECORD))
        wait_for(lambda: len([n for n, *_ in recorder.set_to if n == "cdsweep_kl_nats"]) > 3, 30, "set again")
        gauges.show([(names.KL, {}, 0.7)])
        wait_for(
            lambda: recorder.set_to[-1][0] and ("cdsweep_kl_nats", 0.7, TAGS) in recorder.set_to, 30, "new"
        )
    gauges._thread.join(30)
    count = len(recorder.set_to)
    gauges.show([(names.KL, {}, 0.9)])
    assert len(recorder.set_to) == count, "nothing after the end"
    assert ("cdsweep_reward", 0.1, {**TAGS, "constraint": "saturation"}) in recorder.set_to
    assert all(name != "cdsweep_kkt_residual" for name, *_ in recorder.set_to), "infinity is no reading"


def test_refused_metrics_are_said_once(
    quick: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(metrics, "_gauge", Recorder(broken=True))
    with caplog.at_level(logging.WARNING), metrics.LiveGauges(TAGS) as gauges:
        for _ in range(3):
            gauges.show(metrics.trial_readings(RECORD))
    assert [record.getMessage() for record in caplog.records] == [
        "no metrics for Ray's dashboard: no core worker"
    ]


def test_a_sweep_counts_its_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(metrics, "_gauge", recorder)
    with metrics.SweepGauges("s", planned=4, statuses=["succeeded"]) as gauges:
        gauges.ended({"status": "failed"})
        gauges.planned(5)
    last = {tags["status"]: value for _, value, tags in recorder.set_to}
    assert last == {"planned": 5, "succeeded": 1, "failed": 1, "infeasible": 0}
