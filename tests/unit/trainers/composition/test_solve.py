"""The dual step, against a general-purpose optimiser."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from trainers.composition.solve import gap, newton_target


def problem(seed: int, models: int, rewards: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(models + rewards, models + rewards))
    weights = rng.dirichlet(np.ones(models))
    return weights, rng.exponential(size=rewards), rng.normal(size=models + rewards), root @ root.T


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rewards", [0, 2])
def test_the_target_maximises_the_quadratic_model(seed: int, rewards: int) -> None:
    weights, tilt, gradient, curvature = problem(seed, 4, rewards)
    start = np.concatenate([weights, tilt])

    def negative(point: np.ndarray) -> float:
        move = point - start
        return float(0.5 * move @ curvature @ move - gradient @ move)

    found = minimize(
        negative,
        start,
        bounds=[(0, 1)] * 4 + [(0, None)] * rewards,
        constraints={"type": "eq", "fun": lambda point: point[:4].sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
        method="SLSQP",
    )
    target, priced, decrement = newton_target(weights, tilt, gradient, curvature)
    assert target.sum() == pytest.approx(1.0)
    assert (target >= 0).all()
    assert (priced >= 0).all()
    assert negative(np.concatenate([target, priced])) <= found.fun + 1e-5 * (1 + abs(found.fun))
    move = np.concatenate([target, priced]) - start
    assert decrement == pytest.approx(np.sqrt(move @ curvature @ move))


def test_at_the_optimum_nothing_moves() -> None:
    weights, _, _, curvature = problem(1, 3, 0)
    target, _, decrement = newton_target(weights, np.zeros(0), np.full(3, 0.7), curvature)
    np.testing.assert_allclose(target, weights, atol=1e-9)
    assert decrement == pytest.approx(0.0, abs=1e-7)


def test_models_that_coincide_do_not_stop_it() -> None:
    curvature = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])  # singular
    target, _, _ = newton_target(np.full(3, 1 / 3), np.zeros(0), np.array([0.0, 0.0, 0.2]), curvature)
    # Along (−½, −½, 1) t: gain 0.2 t − ½ · 2 t², so t = 0.1.
    np.testing.assert_allclose(target, [1 / 3 - 0.05, 1 / 3 - 0.05, 1 / 3 + 0.1], atol=1e-4)


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_the_gap_is_never_negative_and_zero_where_all_are_equal(seed: int, models: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(models))
    assert gap(weights, rng.normal(size=models)) >= -1e-12
    assert gap(weights, np.full(models, 0.3)) == pytest.approx(0.0, abs=1e-12)
