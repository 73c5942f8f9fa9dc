"""Questions to a finished trial for a box: what is kept of an answer, and that none is measured twice."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.execution.asking import answers, put
from orchestrator.execution.trials.ports import StorePort
from orchestrator.execution.trials.rounds import better
from orchestrator.execution.trials.trial import record, run_beside, task
from orchestrator.plan import make_job, make_plan
from orchestrator.results import layout
from orchestrator.results.store import SweepStore
from orchestrator.spec.load import dump_spec, parse_spec
from trainers.config import BaselineStatistics, RewardStatistics
from trainers.hosts.pack import Pack
from trainers.problem import run_trial
from trainers.trial_io import LocalTrialIO

SPEC = """
name: whole
model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}
constraints:
  - {reward: {linear: {direction: [1.0]}}, name: x, at_least: {range: [0.2, 1.0]}}
methods: [frontier: {points: 2}]
search: {kind: certified, tolerance: 0.01}
sampling: {steps: 8}
training: {steps: 40, batch_per_worker: 64, width: 16}
evaluation: {images: 2048, baseline_images: 2048}
"""
BASELINE = BaselineStatistics(rewards={"x": RewardStatistics(mean=0.0, std=1.0)}, samples=None)


def test_an_answer_is_kept_beside_those_of_the_design_and_given_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = parse_spec(SPEC)
    plan = make_plan(spec)
    store = SweepStore(str(tmp_path), spec.name)
    store.create(dump_spec(spec), plan.to_json(), BASELINE.model_dump(mode="json"))
    [trial] = plan.trials
    job = make_job(trial, BASELINE)
    outcome = run_trial(job, LocalTrialIO())
    record(job, outcome, store, started_at=datetime.now(UTC))
    design = store.answers(trial.trial_id).to_pylist()
    assert all(row["distance"] is not None and row["wall_seconds"] is None for row in design)
    assert design[0]["distance"] <= store.stored_trial(trial.trial_id)["distance"]  # type: ignore[index]

    shown = layout.answer_image(trial.trial_id, 2)
    store.write_file(shown, b"of a trial that was begun anew, which had more answers")
    put({"x": 0.6}, job, StorePort(job, store), gpus=2.0)
    assert store.read_file(shown) is None
    rows = store.answers(trial.trial_id).to_pylist()
    assert rows[:2] == design
    [new] = rows[2:]
    assert answers(new, {"x": 0.6})
    assert not answers(new, {"x": 0.61})
    assert new["feasible"]
    assert new["reward_x"] == pytest.approx(0.6, abs=0.01)
    assert new["kl"] == pytest.approx(0.18, abs=0.02)  # b²/2
    assert (new["lower_bound"], new["lower_bound_kind"]) == (pytest.approx(0.18), "proven")
    # K + λ(b − R) − d is λb − log Z, at most b²/2 whatever the adapter is worth.
    price = new["nearest_x"]
    tangent = new["kl"] + price * (0.6 - new["reward_x"]) - new["distance"]
    assert tangent == pytest.approx(price * 0.6 - price**2 / 2, abs=0.005)
    assert tangent >= 0.17
    assert new["gpu_seconds"] == 2 * new["wall_seconds"] > 0
    spent = store.stored_trial(trial.trial_id)
    assert spent is not None
    assert spent["asked_gpu_seconds"] == new["gpu_seconds"], "the trial's own was without a GPU"
    assert spent["gpu_seconds"] == new["gpu_seconds"]

    # Whether a round is better is told by the design alone; it takes the place of the answers.
    before = store.stored_trial(trial.trial_id)
    assert before is not None
    cheaper = [replace(one, kl=replace(one.kl, mean=one.kl.mean - 0.01)) for one in outcome.answers]
    assert better(job.config, replace(outcome, answers=tuple(cheaper)), before, rows)
    dearer = [replace(one, kl=replace(one.kl, mean=one.kl.mean + 0.01)) for one in outcome.answers]
    assert not better(job.config, replace(outcome, answers=tuple(dearer)), before, rows)

    # In the process of a pack, which the question has no part in.
    config = task(job, plan.resources, store, "", asked={"x": 0.8})
    assert config["workers"] == [1, 1]
    run_beside(config, Pack(), lambda _: None, lambda: 0.5)
    *before_it, beside = store.answers(trial.trial_id).to_pylist()
    assert before_it == rows
    assert answers(beside, {"x": 0.8})
    rows.append(beside)

    monkeypatch.setattr(store, "adapter", lambda _: {})
    put({"x": 0.6}, job, StorePort(job, store), gpus=0.0)
    assert store.answers(trial.trial_id).to_pylist() == rows, "it is there, and not measured again"
    with pytest.raises(ValueError, match="there is no multipliers"):
        put({"x": 0.7}, job, StorePort(job, store), gpus=0.0)
