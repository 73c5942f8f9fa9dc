"""First multipliers from samples, against Gaussians whose tilts are closed form."""

import numpy as np
import pytest

from trainers.alignment.lagrangian import build_lagrangian
from trainers.alignment.start import first_multipliers
from trainers.duality.tilting import Prompts, tilt_within_budget, tilted_start
from trainers.testing import gaussian_job


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


# With prompts: a policy chooses images, not prompts.

WITHIN = 0.21
"""Variance within a prompt, of 1 in all."""
BOUND = 0.54


def prompted(each: int, prompts: int = 4000, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Rewards ``[n, 1]`` of variance 1, mean 0, in turns of the prompts."""
    rng = np.random.default_rng(seed)
    levels = rng.normal(size=prompts)
    levels = (levels - levels.mean()) / levels.std() * np.sqrt(1 - WITHIN)
    noise = np.sqrt(WITHIN) * rng.normal(size=(each, prompts))
    values = levels + noise - noise.mean()
    return values.reshape(-1, 1), [f"prompt {i}" for i in range(prompts)] * each


@pytest.mark.parametrize(("each", "left"), [(8, 0.15), (16, 0.06), (64, 0.04)])
def test_a_price_is_paid_within_each_prompt(each: int, left: float) -> None:
    """``λ = b / v`` with v the variance within: 2.57, where prompts and images tilted together ask for 0.54.

    Of the bias of few samples the jackknife leaves 12, 5 and 1 %; without it λ is 85, 29 and 7 % too large.
    """
    values, prompts = prompted(each, prompts=32_000 // each)
    together = tilted_start(values, np.array([BOUND]))
    assert together.multipliers == pytest.approx([0.54], abs=0.02)
    start = tilted_start(values, np.array([BOUND]), prompts=prompts)
    assert start.multipliers == pytest.approx([2.57], rel=left)
    assert start.kl == pytest.approx(BOUND**2 / (2 * WITHIN), rel=left)


def test_a_budget_is_spent_within_each_prompt() -> None:
    """``max E[r]`` with ``KL <= B`` moves by ``√(2 B v)``, and a nat more buys ``√(v / 2B)``."""
    values, prompts = prompted(32)
    price, _ = tilt_within_budget(values[:, 0], np.zeros((len(values), 0)), np.zeros(0), 0.5, prompts=prompts)
    assert price == pytest.approx(np.sqrt(WITHIN), rel=0.04)


@pytest.mark.parametrize("each", [2, 3, 7])
def test_the_jackknife_and_its_slope_by_brute_force(each: int) -> None:
    rng = np.random.default_rng(each)
    prompts = ["a", "b"] * each + ["a"]
    exponents = 2.0 * rng.normal(size=len(prompts))

    def brute(values: np.ndarray) -> float:
        total = []
        for prompt in "ab":
            mine = values[[p == prompt for p in prompts]]
            count = len(mine)
            left = [np.log(np.exp(np.delete(mine, i)).mean()) for i in range(count)]
            total.append(count * np.log(np.exp(mine).mean()) - (count - 1) / count * np.sum(left))
        return float(np.mean(total))

    value, slope = Prompts(prompts, len(prompts)).log_partition(exponents)
    assert value == pytest.approx(brute(exponents))
    steps = 1e-5 * np.eye(len(prompts))
    numeric = [(brute(exponents + h) - brute(exponents - h)) / 2e-5 for h in steps]
    np.testing.assert_allclose(slope, numeric, atol=1e-6)


def test_a_single_sample_of_a_prompt_tells_no_price() -> None:
    rewards, prompts = normal(count=100), [str(i) for i in range(100)]
    assert tilted_start(rewards, np.array([0.5]), prompts=prompts).multipliers.tolist() == [0.0]
    price, others = tilt_within_budget(rewards[:, 0], rewards, np.array([0.5]), 0.5, prompts=prompts)
    assert (price, others.tolist()) == (0.0, [0.0])


def test_multipliers_of_a_trial_start_from_its_prompts() -> None:
    values, prompts = prompted(64, prompts=500)
    job = gaussian_job({"x": BOUND})
    found = first_multipliers(job.config, build_lagrangian(job), {"x": values[:, 0]}, prompts)
    assert found == pytest.approx([2.57], rel=0.06)
