"""Rows of trials as points: what they reached, at what price, and what a row without one of these says."""

import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from orchestrator.frontier.bounds.bounds import FrontierPoint
from orchestrator.frontier.bounds.trial_points import bounded, mean_point, points_of, pretrained_point
from orchestrator.frontier.trials import Trials
from orchestrator.plan import PlannedTrial, base_config, constrained_trial, make_job, weighted_trial
from orchestrator.results.schema import Names, trial_table, trials_schema
from orchestrator.spec.load import parse_spec
from trainers.config import BaselineStatistics, RewardStatistics
from trainers.types import Interval, TrialOutcome

SPEC = """
name: demo
model: {mixture: {weights: [1.0], means: [[0.0, 0.0]], covariances: [[[1.0, 0.0], [0.0, 1.0]]]}}
constraints:
  - {reward: {quadratic: {center: [1.0, 0.0]}}, name: near, at_least: -0.5}
  - {reward: {linear: {direction: [1.0, 0.0]}}, name: right, at_least: 0.5, unit: sigma}
methods:
  - constrained
  - weighted: {weights: {near: 1.0, right: 0.5}}
"""
BASE = base_config(parse_spec(SPEC))
BASELINE = BaselineStatistics(
    rewards={"near": RewardStatistics(mean=-1.5, std=2.0), "right": RewardStatistics(mean=0.1, std=0.5)},
    samples=None,
)
COORDINATES = (("near", "near"), ("right", "right"))


def row_of(trial: PlannedTrial, **changes: Any) -> dict[str, Any]:
    """The row as the store has it."""
    fields: dict[str, Any] = {
        "status": "succeeded",
        "error": None,
        "feasible": True,
        "kl": Interval(mean=0.4, low=0.4 - 1.96 * 0.01, high=0.4 + 1.96 * 0.01),
        "kl_estimator": "path",
        "rewards": {
            "near": Interval(mean=-0.6, low=-0.6 - 1.96 * 0.02, high=-0.6 + 1.96 * 0.02),
            "right": Interval(mean=0.4, low=0.4 - 1.96 * 0.03, high=0.4 + 1.96 * 0.03),
        },
        "violations": {"near": 0.1, "right": -0.05},
        "multipliers": {"near": 0.7, "right": 0.2},
        "weights": {},
        "steps": 5,
        "wall_seconds": 1.0,
        "evaluation": None,
        "history": (),
    } | changes
    now = datetime(2025, 1, 1, tzinfo=UTC)
    outcome = TrialOutcome(**fields)
    return trial_table(make_job(trial, BASELINE), outcome, started_at=now, finished_at=now).to_pylist()[0]


def point_of(row: dict[str, Any], coordinates: Any = COORDINATES) -> FrontierPoint | None:
    schema = trials_schema(Names.of(BASE))
    [point] = points_of(Trials.of(pa.Table.from_pylist([row], schema=schema), BASE), coordinates)
    return point


TRIAL = constrained_trial(BASE, {}, 0)
WEIGHTED = weighted_trial(BASE, {"near": 1.0, "right": 0.5}, 0)


def test_coordinates_are_those_of_the_spec() -> None:
    assert bounded(BASE) == COORDINATES


def test_a_constrained_trial() -> None:
    point = point_of(row_of(TRIAL))
    assert point is not None
    assert point.rewards == pytest.approx([-0.6, 0.4])
    assert point.kl == 0.4
    assert point.multipliers == pytest.approx([0.7, 0.2])
    assert point.errors == pytest.approx([0.02, 0.03], rel=1e-4)
    assert point.kl_error == pytest.approx(0.01, rel=1e-4)
    assert point.met == pytest.approx([-0.5, 0.1 + 0.5 * 0.5]), (
        "feasible: as good as its thresholds, in reward units"
    )
    turned = point_of(row_of(TRIAL), COORDINATES[::-1])
    assert turned is not None
    assert turned.rewards == pytest.approx([0.4, -0.6])


def test_what_is_not_feasible_reaches_only_what_was_measured() -> None:
    for feasible in (False, None):
        point = point_of(row_of(TRIAL, feasible=feasible))
        assert point is not None
        assert point.met is None


def test_a_weighted_trial_has_weights_as_prices_and_met_nothing() -> None:
    row = row_of(WEIGHTED, multipliers={}, weights={"near": 0.5, "right": 1.0})
    point = point_of(row)
    assert point is not None
    assert point.multipliers == pytest.approx([0.5, 1.0])
    assert point.met is None, "the loosest thresholds that it carries are not what it was made for"


def test_a_trial_that_did_not_converge_can_be_mixed_but_has_no_tangent() -> None:
    for changes in (
        {"status": "infeasible", "error": "infeasible"},
        {"multipliers": {"near": math.inf, "right": 0.2}},
        {"multipliers": {"near": 0.7}},
        {"multipliers": {}},  # the best state is reported, and it has none of its own
    ):
        point = point_of(row_of(TRIAL, **changes))
        assert point is not None
        assert point.multipliers is None
    negative = point_of(row_of(TRIAL, multipliers={"near": 0.7, "right": -1e-9}))
    assert negative is not None
    assert negative.multipliers == pytest.approx([0.7, 0.0])


def test_a_reward_without_a_threshold_is_free() -> None:
    row = row_of(TRIAL, multipliers={"right": 0.2}) | {"threshold_near": None, "violation_near": None}
    point = point_of(row)
    assert point is not None
    assert point.multipliers == pytest.approx([0.0, 0.2])
    assert point.met == pytest.approx([-np.inf, 0.35])


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "failed", "error": "diverged"},
        {"kl": None},
        {"kl": Interval(mean=math.nan, low=math.nan, high=math.nan)},
        {"rewards": {"near": Interval(mean=-0.6, low=-0.7, high=-0.5)}},
        {"kl": Interval(mean=0.4, low=-math.inf, high=math.inf)},
    ],
)
def test_a_trial_without_figures_has_no_point(changes: dict[str, Any]) -> None:
    assert point_of(row_of(TRIAL, **changes)) is None


def test_a_kl_below_zero_is_noise() -> None:
    point = point_of(row_of(TRIAL, kl=Interval(mean=-1e-3, low=-0.01, high=0.01)))
    assert point is not None
    assert point.kl == 0.0


def test_the_mean_of_seeds() -> None:
    other = {"kl": Interval(mean=0.6, low=0.6 - 1.96 * 0.03, high=0.6 + 1.96 * 0.03)}
    rows = [row_of(TRIAL), row_of(TRIAL, multipliers={"near": 0.9, "right": 0.4}, **other)]
    points = [point for row in rows if (point := point_of(row)) is not None]
    mean = mean_point(points)
    assert mean.kl == pytest.approx(0.5)
    assert mean.multipliers == pytest.approx([0.8, 0.3])
    assert mean.kl_error == pytest.approx(math.hypot(0.01, 0.03) / 2, rel=1e-4)
    assert mean.errors == pytest.approx(np.array([0.02, 0.03]) / math.sqrt(2), rel=1e-4)
    assert mean.met == pytest.approx([-0.5, 0.35])
    assert mean_point(points[:1]) is points[0]

    missed = point_of(row_of(TRIAL, feasible=False))
    stopped = point_of(row_of(TRIAL, status="infeasible", error="infeasible"))
    assert missed is not None
    assert stopped is not None
    assert mean_point([points[0], missed]).met is None
    assert mean_point([points[0], stopped]).multipliers is None, "half of the seeds do not make a price"


def test_the_pretrained_model() -> None:
    point = pretrained_point({"right": (0.1, 0.01), "near": (-1.5, 0.02), "other": (1.0, 0.0)}, COORDINATES)
    assert point.rewards == pytest.approx([-1.5, 0.1])
    assert point.errors == pytest.approx([0.02, 0.01])
    assert point.kl == 0.0
    assert point.multipliers == pytest.approx([0.0, 0.0])
