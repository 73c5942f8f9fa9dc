"""First multipliers from samples, against Gaussians whose tilts are closed form."""

import numpy as np
import pytest

from trainers.duality.tilting import tilt_within_budget, tilted_start


def normal(columns: int = 1, count: int = 100_000) -> np.ndarray:
    """Standard normal samples ``[count, columns]`` with exact mean 0 and covariance I."""
    draws = np.random.default_rng(0).normal(size=(count, columns))
    draws = draws - draws.mean(axis=0)
    return draws @ np.linalg.inv(np.linalg.cholesky(np.cov(draws.T, ddof=0).reshape(columns, columns))).T


@pytest.mark.parametrize("bound", [0.3, 1.0, 1.5])
def test_a_linear_reward_of_a_gaussian(bound: float) -> None:
    start = tilted_start(normal(), np.array([bound]))
    assert start.multipliers == pytest.approx([bound], rel=0.03)
    assert start.kl == pytest.approx(bound**2 / 2, rel=0.03)
    # 1 / Σ w² of n samples tilted by λ: n exp(−λ²)
    assert start.effective_samples == pytest.approx(1e5 * np.exp(-(bound**2)), rel=0.25)


def test_correlated_rewards() -> None:
    covariance, bounds = np.array([[1.0, 0.5], [0.5, 2.0]]), np.array([0.5, 1.0])
    rewards = normal(2) @ np.linalg.cholesky(covariance).T
    start = tilted_start(rewards, bounds)
    np.testing.assert_allclose(start.multipliers, np.linalg.solve(covariance, bounds), atol=0.03)
    assert start.kl == pytest.approx(0.5 * bounds @ np.linalg.solve(covariance, bounds), rel=0.03)


def test_a_threshold_that_is_met_costs_nothing() -> None:
    start = tilted_start(normal(2), np.array([-0.5, 0.6]))
    np.testing.assert_allclose(start.multipliers, [0.0, 0.6], atol=0.03)


def test_a_threshold_out_of_reach_ends_at_the_limit() -> None:
    start = tilted_start(normal(count=1000), np.array([50.0]), limit=7.0)
    assert start.multipliers == pytest.approx([7.0])


@pytest.mark.parametrize("budget", [0.1, 0.5, 1.0])
def test_the_best_mean_within_a_kl_budget(budget: float) -> None:
    """``max E[x]`` with ``KL <= B`` shifts by ``√(2B)``; a nat more buys ``1/√(2B)``."""
    price, others = tilt_within_budget(normal()[:, 0], np.zeros((100_000, 0)), np.zeros(0), budget)
    shift = np.sqrt(2 * budget)
    assert price == pytest.approx(1 / shift, rel=0.03)
    assert others.shape == (0,)


def test_a_threshold_beside_the_budget() -> None:
    """Independent x, y: of ``B``, ``b²/2`` goes to ``E[y] >= b`` and the rest to ``E[x]``."""
    draws, budget, bound = normal(2), 0.8, 0.7
    price, others = tilt_within_budget(draws[:, 0], draws[:, 1:], np.array([bound]), budget)
    shift = np.sqrt(2 * budget - bound**2)
    assert price == pytest.approx(1 / shift, rel=0.03)
    np.testing.assert_allclose(others, [bound / shift], rtol=0.03)
