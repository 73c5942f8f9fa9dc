"""The Lagrangian: one sign, and prices that are slopes of the exact optimum."""

import numpy as np
import pytest
from scipy.optimize import minimize

from trainers.duality.constraint import Constraint, scaled_violations
from trainers.duality.lagrangian import KL, Lagrangian


def reward_constraint(name: str = "r", bound: float = 1.0, scale: float = 1.0) -> Constraint:
    return Constraint(name=name, quantity=name, sign=-1.0, bound=bound, scale=scale)


def kl_constraint(budget: float) -> Constraint:
    return Constraint(name="kl", quantity=KL, sign=1.0, bound=budget, scale=1.0)


def test_violation_is_positive_exactly_when_the_constraint_is_broken() -> None:
    assert reward_constraint(bound=2.0).violation(1.5) == 0.5
    assert reward_constraint(bound=2.0).violation(2.5) == -0.5
    assert kl_constraint(1.0).violation(1.5) == 0.5
    assert kl_constraint(1.0).violation(0.25) == -0.75
    scaled = scaled_violations(
        [reward_constraint(bound=2.0, scale=4.0), kl_constraint(1.0)], {"r": 1.0, KL: 3.0}
    )
    np.testing.assert_allclose(scaled, [0.25, 2.0])


@pytest.mark.parametrize("objective", [KL, "o"])
def test_coefficients_are_the_derivatives_of_the_value(objective: str) -> None:
    lagrangian = Lagrangian(
        objective=objective,
        objective_scale=1.0 if objective == KL else 2.0,
        constraints=(
            reward_constraint("r", scale=0.5),
            kl_constraint(0.7),
            reward_constraint("o", scale=2.0),
        ),
        fixed={},
    )
    multipliers, means, step = np.array([1.5, 0.3, 0.8]), {KL: 0.4, "r": 0.2, "o": -1.0}, 1e-4
    coefficients = lagrangian.coefficients(multipliers)

    def slope(name: str) -> float:
        up, down = (lagrangian.value(means | {name: means[name] + s}, multipliers) for s in (step, -step))
        return (up - down) / (2 * step)

    assert coefficients.kl == pytest.approx(slope(KL))
    assert {n: -c for n, c in coefficients.rewards.items()} == pytest.approx(
        {n: slope(n) for n in ("r", "o")}
    )
    # And in the multipliers it is the vector of violations.
    for i, violation in enumerate(scaled_violations(lagrangian.constraints, means)):
        shifted = multipliers + step * np.eye(3)[i]
        rise = lagrangian.value(means, shifted) - lagrangian.value(means, multipliers)
        assert rise / step == pytest.approx(violation)


def test_weighted_baseline_has_fixed_coefficients_and_no_prices() -> None:
    lagrangian = Lagrangian(
        objective=KL, objective_scale=1.0, constraints=(reward_constraint("r"),), fixed={"r": 0.4, "s": 2.0}
    )
    coefficients = lagrangian.coefficients(np.zeros(0))
    assert coefficients.kl == 1.0
    assert coefficients.rewards == {"r": 0.4, "s": 2.0}
    assert coefficients.tilt() == {"r": 0.4, "s": 2.0}
    assert lagrangian.value({KL: 1.0, "r": 0.5, "s": 0.25}, np.zeros(0)) == pytest.approx(0.3)
    assert lagrangian.prices(np.zeros(0)) == {}


# The exact problems behind the prices: q = N(0, S) in 2-D with rewards x_1, x_2, so that a tilt shifts the mean by
# S τ at a KL of ½ τᵀ S τ. Prices must be finite differences of the optimal value.
COVARIANCE = np.array([[1.0, 0.3], [0.3, 2.0]])
SCALES = np.sqrt(np.diag(COVARIANCE))


def least_kl(bounds: np.ndarray) -> float:
    found = minimize(
        lambda m: 0.5 * m @ np.linalg.solve(COVARIANCE, m),
        bounds,
        jac=lambda m: np.linalg.solve(COVARIANCE, m),
        constraints={"type": "ineq", "fun": lambda m: m - bounds, "jac": lambda _: np.eye(2)},
        method="SLSQP",
        options={"ftol": 1e-15},
    )
    return float(found.fun)


def test_prices_of_reward_thresholds_are_slopes_of_the_least_kl() -> None:
    bounds, step = np.array([0.8, 1.1]), 1e-3
    lagrangian = Lagrangian(
        objective=KL,
        objective_scale=1.0,
        constraints=tuple(reward_constraint(f"r{i}", bounds[i], SCALES[i]) for i in range(2)),
        fixed={},
    )
    multipliers = (
        np.linalg.solve(COVARIANCE, bounds) * SCALES
    )  # λ* per scaled violation: both thresholds bind
    assert (multipliers > 0).all()
    slopes = {
        f"r{i}": (least_kl(bounds + step * e) - least_kl(bounds - step * e)) / (2 * step)
        for i, e in enumerate(np.eye(2))
    }
    assert lagrangian.prices(multipliers) == pytest.approx(slopes, rel=1e-4)


def test_prices_under_a_kl_budget_are_slopes_of_both_problems() -> None:
    """``max E[x_1]`` subject to ``KL <= B`` and ``E[x_2] >= b``."""
    budget, bound, step = 0.9, 0.9, 1e-4
    objective_scale, scale = SCALES

    def best(budget: float, bound: float) -> tuple[float, np.ndarray]:
        """On the plane x_2 = b the best mean is where the KL uses up its budget."""
        conditional = COVARIANCE[0, 1] / COVARIANCE[1, 1] * bound
        left = 2 * budget - bound**2 / COVARIANCE[1, 1]
        spread = COVARIANCE[0, 0] - COVARIANCE[0, 1] ** 2 / COVARIANCE[1, 1]
        return conditional + np.sqrt(left * spread), np.array([conditional + np.sqrt(left * spread), bound])

    value, mean = best(budget, bound)
    tilt = np.linalg.solve(COVARIANCE, mean)  # = (1/(s_o ν), μ/(s ν))
    nu = 1 / (objective_scale * tilt[0])
    mu = tilt[1] * scale * nu
    lagrangian = Lagrangian(
        objective="o",
        objective_scale=objective_scale,
        constraints=(kl_constraint(budget), reward_constraint("r", bound, scale)),
        fixed={},
    )
    multipliers = np.array([nu, mu])
    assert lagrangian.coefficients(multipliers).tilt() == pytest.approx({"o": tilt[0], "r": tilt[1]})

    prices = lagrangian.prices(multipliers)
    assert prices["kl"] == pytest.approx(
        (best(budget + step, bound)[0] - best(budget - step, bound)[0]) / (2 * step)
    )
    bounds = np.array([value, bound])
    for name, e in (("o", [1, 0]), ("r", [0, 1])):
        slope = (least_kl(bounds + step * np.array(e)) - least_kl(bounds - step * np.array(e))) / (2 * step)
        assert prices[name] == pytest.approx(slope, rel=1e-3)


def test_tilt_stays_finite_while_a_budget_has_no_price() -> None:
    lagrangian = Lagrangian(objective="o", objective_scale=1.0, constraints=(kl_constraint(1.0),), fixed={})
    assert np.isfinite(lagrangian.coefficients([0.0]).tilt()["o"])
    assert lagrangian.prices([0.0]) == {"kl": 0.0, "o": float("inf")}
