"""Dual optimisers: against independent recursions, and on convex problems with known ``x*`` and ``λ*``."""

import importlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trainers.config import DualConfig
from trainers.duality.optimizers import AugmentedLagrangian, DualAscent, DualOptimizer, NuPI, Reweighted

OPTIMIZERS = [DualAscent, NuPI, AugmentedLagrangian, Reweighted]
trajectories = arrays(np.float64, st.tuples(st.integers(1, 12), st.just(3)), elements=st.floats(-100, 100))
starts = arrays(np.float64, 3, elements=st.floats(0, 100))


@pytest.mark.parametrize("cls", OPTIMIZERS)
@given(trajectory=trajectories, start=starts, rate=st.floats(0, 1), penalty=st.floats(1e-3, 10))
def test_multipliers_are_never_negative(
    cls: type[DualOptimizer], trajectory: np.ndarray, start: np.ndarray, rate: float, penalty: float
) -> None:
    dual = cls(DualConfig(penalty=penalty, rate=0.7, proportional=3.0), start)
    for violations in trajectory:
        dual.step(violations, rate)
        assert (dual.multipliers >= 0).all()
        assert (dual.effective(violations) >= 0).all()


def test_ascent_by_hand() -> None:
    dual = DualAscent(DualConfig(rate=0.5), np.array([1.0, 0.2]))
    dual.step(np.array([2.0, -1.0]))
    np.testing.assert_allclose(dual.multipliers, [2.0, 0.0])
    dual.step(np.array([-1.0, 1.0]), rate=0.5)
    np.testing.assert_allclose(dual.multipliers, [1.75, 0.25])


@given(
    trajectory=trajectories, start=starts, nu=st.floats(0, 0.99), kp=st.floats(0, 5), ki=st.floats(0.01, 2)
)
def test_nu_pi_is_its_recursion(
    trajectory: np.ndarray, start: np.ndarray, nu: float, kp: float, ki: float
) -> None:
    """Sohrabi et al. 2024, algorithm 1, written out once more with scalars; ``ξ_{−1} = ξ_0 = g_0``."""
    dual = NuPI(DualConfig(rate=ki, proportional=kp, nu=nu), start)
    multipliers, smoothed = [float(s) for s in start], [float(g) for g in trajectory[0]]
    for violations in trajectory:
        dual.step(violations)
        for i, g in enumerate(violations):
            new = nu * smoothed[i] + (1 - nu) * g
            multipliers[i] = max(0.0, multipliers[i] + ki * g + kp * (new - smoothed[i]))
            smoothed[i] = new
        np.testing.assert_allclose(dual.multipliers, multipliers, rtol=1e-9, atol=1e-9)


def test_nu_pi_is_coopers() -> None:
    optim = importlib.import_module("cooper.optim")
    config = DualConfig(rate=0.3, proportional=1.7, nu=0.8)
    trajectory = np.random.default_rng(0).normal(size=(40, 2)) + 0.2
    dual = NuPI(config, np.ones(2))
    theirs = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = optim.nuPI([theirs], lr=1.0, Kp=1.7, Ki=0.3, ema_nu=0.8, maximize=True)
    for step, violations in enumerate(trajectory):
        dual.step(violations)
        theirs.grad = torch.tensor(violations)
        optimizer.step()
        if (
            step == 0
        ):  # cooper's documentation says ξ_0 = g_0, as the paper does; its code (1.0.1) starts at 0
            optimizer.state[theirs]["xi"] = torch.tensor(violations)
        with torch.no_grad():
            theirs.clamp_(min=0.0)
        # Their gains are float32.
        np.testing.assert_allclose(dual.multipliers, theirs.detach().numpy(), atol=1e-5)


@given(trajectory=trajectories, start=starts, nu=st.floats(0, 0.99))
def test_nu_pi_without_proportional_part_is_ascent(
    trajectory: np.ndarray, start: np.ndarray, nu: float
) -> None:
    nu_pi, ascent = NuPI(DualConfig(proportional=0.0, nu=nu), start), DualAscent(DualConfig(), start)
    for violations in trajectory:
        nu_pi.step(violations)
        ascent.step(violations)
        assert nu_pi.multipliers.tolist() == ascent.multipliers.tolist()


@given(start=starts, violations=arrays(np.float64, 3, elements=st.floats(-100, 100)))
def test_augmented_gradient_is_that_of_the_augmented_function(
    start: np.ndarray, violations: np.ndarray
) -> None:
    """``d/dg (‖[λ + c g]₊‖² − ‖λ‖²) / 2c = [λ + c g]₊``, by central differences."""
    penalty, step = 0.7, 1e-4
    dual = AugmentedLagrangian(DualConfig(penalty=penalty), start)

    def augmented(g: np.ndarray) -> np.ndarray:
        return (np.maximum(start + penalty * g, 0.0) ** 2 - start**2) / (2 * penalty)

    slope = (augmented(violations + step) - augmented(violations - step)) / (2 * step)
    np.testing.assert_allclose(dual.effective(violations), slope, atol=1e-3)
    np.testing.assert_array_equal(dual.effective(None), start)


# Convex problems min ½‖x − a‖² subject to A x <= c, solved by hand: (a, A, c, x*, λ*).
PROBLEMS = {
    "active": ([2.0], [[1.0]], [1.0], [1.0], [1.0]),
    "inactive": ([2.0], [[1.0]], [3.0], [2.0], [0.0]),
    "lower": ([0.0, 0.0], [[-1.0, -2.0]], [-5.0], [1.0, 2.0], [1.0]),
    "two active": ([2.0, 3.0], [[1.0, 0.0], [1.0, 1.0]], [0.5, 2.0], [0.5, 1.5], [0.0, 1.5]),
    "corner": ([3.0, 3.0], [[1.0, 0.0], [1.0, 1.0]], [0.5, 2.0], [0.5, 1.5], [1.0, 1.5]),
}


@pytest.mark.parametrize("cls", OPTIMIZERS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_converges_to_the_exact_optimum(cls: type[DualOptimizer], name: str) -> None:
    target, matrix, bounds, solution, multipliers = (np.array(part) for part in PROBLEMS[name])
    dual = cls(DualConfig(rate=0.1, proportional=0.2), np.zeros(len(bounds)))
    covariance = matrix @ matrix.T  # how violations answer to multipliers
    x = np.zeros_like(target)
    for _ in range(4000):
        violations = matrix @ x - bounds
        x = x - 0.1 * (x - target + matrix.T @ dual.effective(violations))
        dual.observe(covariance)
        dual.step(matrix @ x - bounds)
    np.testing.assert_allclose(x, solution, atol=1e-6)
    np.testing.assert_allclose(dual.multipliers, multipliers, atol=1e-6)


def test_proportional_part_and_penalty_damp_the_oscillation() -> None:
    """A stiff dual rate makes plain ascent swing; ν-PI and the augmented Lagrangian settle sooner."""

    def swing(dual: DualOptimizer) -> float:
        x, path = 0.0, []
        for _ in range(150):
            x -= 0.05 * (x - 2.0 + float(dual.effective(np.array([x - 1.0]))[0]))
            dual.step(np.array([x - 1.0]))
            path.append(x)
        return float(np.ptp(path[75:]))

    config = DualConfig(rate=0.5, proportional=5.0, nu=0.0, penalty=5.0)
    ascent, nu_pi, augmented = (swing(cls(config, np.zeros(1))) for cls in OPTIMIZERS[:3])
    assert nu_pi < 0.2 * ascent
    assert augmented < 0.2 * ascent


# Gaussian rewards, whose violations answer to multipliers by exactly b − C λ.

COVARIANCE = np.array([[0.8, 0.3], [0.3, 0.5]])
BOUNDS = {
    "both bind": (np.array([0.6, 0.5]), np.linalg.solve(COVARIANCE, [0.6, 0.5])),
    "one is met by the other": (np.array([0.6, 0.1]), np.array([0.6 / 0.8, 0.0])),
    "none binds": (np.array([-0.2, -0.1]), np.zeros(2)),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_reweighting_solves_gaussian_rewards_in_a_few_steps(name: str) -> None:
    bounds, solution = BOUNDS[name]
    dual = Reweighted(DualConfig(kind="reweighted", rate=1.0), np.array([1.0, 0.2]))
    for _ in range(4):
        dual.observe(COVARIANCE)
        dual.step(bounds - COVARIANCE @ dual.multipliers)
    np.testing.assert_allclose(dual.multipliers, solution, atol=5e-3)


def test_a_reweighted_step_leaves_most_samples_effective() -> None:
    """``δ·C δ`` is at most 1/2, for any violation; exp(−1/2) of Gaussian samples are then effective."""
    dual = Reweighted(DualConfig(kind="reweighted", rate=1.0), np.zeros(2))
    dual.observe(COVARIANCE)
    dual.step(np.array([40.0, -3.0]))
    assert dual.multipliers @ COVARIANCE @ dual.multipliers == pytest.approx(0.5, rel=0.01)
    assert dual.multipliers[1] == 0.0


def test_reweighting_knows_how_little_a_constraint_answers() -> None:
    """Variances 0.9 and 0.05: steps until both multipliers are within a tenth of the solution, from batches of 64."""

    def steps(dual: DualOptimizer) -> int:
        rng, covariance = np.random.default_rng(0), np.diag([0.9, 0.05])
        bounds = covariance @ [0.6, 3.0]
        for step in range(1, 1000):
            dual.observe(covariance)
            noise = rng.multivariate_normal(np.zeros(2), covariance / 64)
            dual.step(bounds - covariance @ dual.multipliers + noise)
            if np.allclose(dual.multipliers, [0.6, 3.0], rtol=0.1):
                return step
        return 1000

    config = DualConfig(rate=0.3)
    assert 3 * steps(Reweighted(config, np.zeros(2))) < steps(NuPI(config, np.zeros(2)))
