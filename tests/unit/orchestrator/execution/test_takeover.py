"""Results of an equal trial of another sweep: all that there is of it comes along."""

import io
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from orchestrator.execution.takeover import take_over
from orchestrator.execution.trials.trial import record
from orchestrator.plan import make_job, make_plan
from orchestrator.results import layout
from orchestrator.results.store import SweepStore
from orchestrator.spec.load import dump_spec, parse_spec
from trainers.config import BaselineStatistics, RewardStatistics
from trainers.types import Answer, Interval, TrialOutcome

SPEC = """
name: NAME
model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}
constraints:
  - {reward: {linear: {direction: [1.0]}}, name: x, at_least: {range: [0.4, 2.0]}}
methods: [frontier: {}]
"""
BASELINE = BaselineStatistics(rewards={"x": RewardStatistics(mean=0.0, std=1.0)}, samples=None)


def test_answers_and_their_images_come_along(tmp_path: Path) -> None:
    stores = []
    for name in ("first", "second"):
        spec = parse_spec(SPEC.replace("NAME", name))
        plan = make_plan(spec)
        stores.append(SweepStore(str(tmp_path), name))
        stores[-1].create(dump_spec(spec), plan.to_json(), BASELINE.model_dump(mode="json"))
    first, second = stores
    [trial] = plan.trials
    met = Interval(mean=0.5, low=0.5, high=0.5)
    told = {"multipliers": {"x": 0.5}, "kl": met, "rewards": {"x": met}, "violations": {"x": -0.1}}
    answers = tuple(
        Answer(thresholds={"x": bound}, feasible=True, images=8, **told)  # type: ignore[arg-type]
        for bound in (0.4, 0.45)
    )
    outcome = TrialOutcome(
        status="succeeded",
        error=None,
        feasible=True,
        kl_estimator="path",
        weights={},
        steps=1,
        wall_seconds=1.0,
        evaluation=None,
        history=(),
        answers=answers,
        adapter={"control.safetensors": b"network"},
        **told,  # type: ignore[arg-type]
    )
    record(make_job(trial, BASELINE), outcome, first, started_at=datetime.now(UTC))
    for place in range(2):
        first.write_file(layout.answer_image(trial.trial_id, place), f"picture {place}".encode())
    said = io.StringIO()
    take_over(plan, second, BASELINE, Console(file=said))
    assert "taken over from first: 1 equal trials" in said.getvalue()
    assert second.adapter(trial.trial_id)["control.safetensors"] == b"network"
    assert second.answers(trial.trial_id) == first.answers(trial.trial_id)
    assert [second.read_file(layout.answer_image(trial.trial_id, place)) for place in range(2)] == [
        b"picture 0",
        b"picture 1",
    ]
