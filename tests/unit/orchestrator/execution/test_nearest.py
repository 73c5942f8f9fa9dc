"""The optimum that an answer is nearest to, where it is known: q = N(0, 1), and the optimum of λ on x is N(λ, 1)."""

import numpy as np
import pytest

from orchestrator.execution.nearest import nearest_of
from orchestrator.plan import make_job, make_plan
from orchestrator.spec.load import parse_spec
from trainers.config import BaselineStatistics, RewardStatistics
from trainers.types import Answer, Evaluation, Interval

SPEC = """
name: whole
model: {mixture: {weights: [1.0], means: [[0.0, 0.0]], covariances: [[[1.0, 0.0], [0.0, 1.0]]]}}
constraints:
  - {reward: {linear: {direction: [1.0, 0.0]}}, name: x, at_least: {range: [0.2, 1.0]}}
  - {reward: x, name: floor, at_least: 0.1}
  - {reward: {linear: {direction: [0.0, 1.0]}}, name: y, at_least: {range: [0.2, 1.0]}}
methods: [frontier: {}]
evaluation: {images: 50000}
"""
BASELINE = BaselineStatistics(
    rewards={name: RewardStatistics(mean=0.0, std=1.0) for name in ("x", "y")}, samples=None
)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"x": 0.3, "floor": 0.1, "y": 0.9}, {"x": 0.45, "floor": 0.15, "y": 0.8}),
        ({"x": 0.0, "floor": 0.0, "y": 0.0}, {"x": 0.6, "floor": 0.0, "y": 0.8}),
    ],
)
def test_what_was_asked_for_need_not_be_what_it_is(own: dict[str, float], expected: dict[str, float]) -> None:
    """Log densities have a noise beside those of N((0.6, 0.8), 1): 0.02 nats."""
    [trial] = make_plan(parse_spec(SPEC)).trials
    rng = np.random.default_rng(0)
    samples, noise = np.array([0.6, 0.8]) + rng.normal(size=(50_000, 2)), 0.2 * rng.normal(size=50_000)
    drawn = Evaluation(
        kl=np.full(50_000, 0.5),
        rewards={"x": samples[:, 0], "y": samples[:, 1]},
        seeds=np.arange(50_000),
        log_ratio=samples @ np.array([0.6, 0.8]) - 0.5 + noise,
    )
    known = Interval(mean=0.5, low=0.5, high=0.5)
    answer = Answer(
        thresholds={"x": 0.5, "floor": 0.4, "y": 0.5},
        multipliers=own,
        kl=known,
        rewards={"x": known, "y": known},
        violations=dict.fromkeys(own, 0.0),
        feasible=True,
        images=50_000,
        evaluation=drawn,
    )
    [found] = nearest_of(make_job(trial, BASELINE), [answer])
    assert found is not None
    assert found.multipliers == pytest.approx(expected, abs=0.01)
    assert found.distance == pytest.approx(0.02, abs=0.002)  # half the variance of what is not a reward's
