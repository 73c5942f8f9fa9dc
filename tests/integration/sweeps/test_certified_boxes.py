"""The certified search that asks one adapter in place of trials, as users meet it, killed and resumed too."""

import json
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.processes import Sweep, family, kill, wait_for

from orchestrator.report.page.document import report_document
from orchestrator.results.store import SweepStore

SPEC = """\
name: asked
model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}
sampling: {steps: 8}
constraints: [{reward: {linear: {direction: [1.0]}}, name: right, at_least: {range: [0.2, 0.9]}, unit: sigma}]
methods: [{frontier: {points: 2, rounds: 2}}]
search: {kind: certified, tolerance: 0.01, max_trials: 12}
training: {steps: 60, batch_per_worker: 64, width: 16, checkpoint_every: 10}
convergence: {tolerance: 1.0e-9}
evaluation: {images: 2048, every: 20}
"""
"""``q = N(0, 1)``: ``E[x] >= b`` costs b²/2 nats."""


@pytest.fixture
def asked(sweep: Sweep) -> Sweep:
    sweep.write(SPEC)
    sweep.name = "asked"
    return sweep


def stored(sweep: Sweep) -> list[dict[str, Any]]:
    """While a round takes the place of another both have files."""
    rows: list[dict[str, Any]] = SweepStore(str(sweep.storage), sweep.name).answers().to_pylist()
    return rows


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in rows]


def check_finished(sweep: Sweep) -> None:
    """One trial, whose answers have brought the gap to the tolerance; none was asked for twice."""
    (trial,) = pq.read_table(sweep.directory / "trials").to_pylist()
    assert (trial["method"], trial["status"]) == ("frontier", "succeeded")
    rows = stored(sweep)
    assert len({row["threshold_right"] for row in rows}) == len(rows) > 3
    for row in rows:
        bound = row["threshold_right"]
        assert row["feasible"]
        assert bound**2 / 2 - 0.002 <= row["kl"] <= bound**2 / 2 + 0.02, "within the tolerance of a trial"
        assert 0 <= row["distance"] < 0.02
    assert [row["gpu_seconds"] for row in rows] == [None, None] + [0.0] * (len(rows) - 2)
    bounds = pq.read_table(sweep.directory / "bounds.parquet").to_pylist()
    assert 0 <= bounds[-1]["gap"] <= 0.01
    assert bounds[-1]["kind"] == "estimated"
    status = json.loads(sweep.ask("status", sweep.name, "--json").stdout)
    assert (status["state"], status["trials"]["succeeded"]) == ("finished", 1)
    (box,) = report_document(SweepStore(str(sweep.storage), sweep.name))["boxes"]
    assert len(box["points"]) == len(rows), "the report knows every answer"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("shared")
def test_the_answers_of_one_trial_close_the_gap(asked: Sweep) -> None:
    first = asked.run("run", "spec.yaml", "--json", "--no-preview")
    assert first.returncode == 0, first.stderr
    check_finished(asked)
    rows = stored(asked)
    assert "(tolerance 0.01), ended: tolerance" in first.stderr
    assert first.stderr.count(" running ") == first.stderr.count(" succeeded "), (
        "an answer is no trial that ends"
    )
    assert f"at right {rows[-1]['threshold_right']:.4g}: KL {rows[-1]['kl']:.3f} nats" in first.stderr
    again = asked.ask("resume", "asked", "--json")
    assert json.loads(again.stdout) == json.loads(first.stdout)
    assert "Ray:" not in again.stderr, "nothing is left to ask"

    # A driver that died before the last answers were there.
    (path,) = (asked.directory / "answers").glob("*.parquet")
    pq.write_table(pq.read_table(path).slice(0, 3), path)
    resumed = asked.run("resume", "asked")
    assert resumed.returncode == 0, resumed.stderr
    assert without_times(stored(asked)) == without_times(rows), (
        "asked as they were, and answered to the last bit"
    )
    assert "succeeded" not in resumed.stderr, "no trial is run again"
    check_finished(asked)


@pytest.mark.exhaustive
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_driver_asks_only_what_is_not_known(asked: Sweep) -> None:
    asked.write(SPEC.replace("tolerance: 0.01, max_trials: 12", "tolerance: 0.0005, max_trials: 24"))
    process = asked.start("run", "spec.yaml", "--address", "local", "--no-preview")
    wait_for(lambda: asked.finished() and len(stored(asked)) > 4, 240, "some answers")
    asked.orphans = family(process.pid)
    kill(process.pid)
    process.wait(30)
    before = stored(asked)
    assert json.loads(asked.ask("status", "asked", "--json").stdout)["state"] == "interrupted"
    resumed = asked.run("resume", "asked", "--address", "local")
    assert resumed.returncode == 0, resumed.stderr
    assert stored(asked)[: len(before)] == before
    bounds = pq.read_table(asked.directory / "bounds.parquet").to_pylist()
    assert bounds[-1]["trials"] == len(stored(asked)) > len(before)
