"""What a trial for a box of thresholds answers, as a table of a sweep."""

from pathlib import Path

import pytest

from orchestrator.plan import make_job, make_plan
from orchestrator.results.schema import LowerBound, answers_table
from orchestrator.results.store import SweepStore
from orchestrator.spec.load import dump_spec, parse_spec
from trainers.config import BaselineStatistics, RewardStatistics
from trainers.types import Answer, Interval

SPEC = """
name: whole
model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}
constraints:
  - {reward: {linear: {direction: [1.0]}}, name: x, at_least: {range: [0.2, 1.0]}}
methods: [frontier: {}]
"""
BOUND = LowerBound(kl=0.4, kind="95%", slopes={"x": 0.9})
BASELINE = BaselineStatistics(rewards={"x": RewardStatistics(mean=0.0, std=1.0)}, samples=None)


def test_answers_are_kept_with_thresholds_prices_and_verdicts(tmp_path: Path) -> None:
    spec = parse_spec(SPEC)
    plan = make_plan(spec)
    [trial] = plan.trials
    job = make_job(trial, BASELINE)
    answers = [
        Answer(
            thresholds={"x": bound},
            multipliers={"x": bound},
            kl=Interval(mean=bound**2 / 2, low=0.0, high=1.0),
            rewards={"x": Interval(mean=bound - 0.1, low=bound - 0.2, high=bound)},
            violations={"x": 0.1},
            feasible=bound < 0.5,
            images=64,
        )
        for bound in (job.thresholds["x"], job.tightest["x"])
    ]
    store = SweepStore(str(tmp_path), "whole")
    store.create(dump_spec(spec), plan.to_json(), {})
    assert store.answers().num_rows == 0
    store.write_answers(trial.trial_id, answers_table(job, answers, [None, BOUND]))
    rows = SweepStore(str(tmp_path), "whole").answers(trial.trial_id).to_pylist()
    assert [row["threshold_x"] for row in rows] == [0.2, 1.0]
    assert [row["feasible"] for row in rows] == [True, False]
    last = rows[-1]
    bounds = [(row["lower_bound"], row["lower_bound_kind"], row["lower_slope_x"]) for row in rows]
    assert bounds == [(None, None, None), (0.4, "95%", 0.9)]
    assert (last["trial_id"], last["kl"], last["multiplier_x"]) == (trial.trial_id, 0.5, 1.0)
    assert (last["reward_x"], last["reward_x_low"], last["reward_x_high"]) == pytest.approx((0.9, 0.8, 1.0))
    assert (last["violation_x"], last["images"]) == (0.1, 64)
