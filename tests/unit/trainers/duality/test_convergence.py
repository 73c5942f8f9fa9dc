"""The KKT residual over a window, what counts as stuck, and what multipliers could still reach."""

import json

import numpy as np
import pytest

from trainers.config import ConvergenceConfig
from trainers.duality.constraint import Constraint
from trainers.duality.convergence import KKTMonitor
from trainers.duality.covariance import RewardCovariance
from trainers.duality.lagrangian import KL, Lagrangian
from trainers.duality.reach import least_violation

CONFIG = ConvergenceConfig(window=20, tolerance=0.03)


def spread(size: float = 1.0, *names: str) -> RewardCovariance:
    names = names or ("r",)
    return RewardCovariance(names=names, values=size * np.eye(len(names)))


def watch(
    steps: int,
    kl: float = 0.5,
    violation: float = 0.0,
    multiplier: float = 1.0,
    rise: float = 0.0,
    fall: float = 0.0,
    gain: float = 0.0,
) -> KKTMonitor:
    """Steps with a multiplier that rises, a violation and a Lagrangian that fall by so much per step."""
    monitor = KKTMonitor(CONFIG, ("r",))
    for step in range(steps):
        monitor.observe(
            kl,
            np.array([violation - fall * step]),
            np.array([multiplier + rise * step]),
            spread(1.0 + step),
            1e3 - gain * step,
        )
    return monitor


def test_nothing_is_said_before_the_window_is_full() -> None:
    assert watch(1).residual() == float("inf")
    assert not watch(19).converged()
    assert watch(20).converged()
    assert watch(19, violation=1.0, rise=0.1).stuck() is None
    assert watch(20, violation=1.0, rise=0.1).stuck() is not None


@pytest.mark.parametrize(
    ("change", "residual"),
    [
        ({"violation": 0.1}, 0.1),  # primal feasibility
        ({"violation": -0.1, "multiplier": 0.0}, 0.0),  # slack without a multiplier is fine
        ({"violation": -0.1, "multiplier": 2.0}, 0.2),  # complementary slackness
        ({"violation": 0.01, "multiplier": 5.0}, 0.05),
        ({"rise": 0.1}, 1.0 / (1.0 + 1.95)),  # drift between the halves, relative to 1 + mean
    ],
)
def test_each_part_of_the_residual(change: dict[str, float], residual: float) -> None:
    assert watch(20, **change).residual() == pytest.approx(residual)


@pytest.mark.parametrize(("budget", "converged"), [(0.05, False), (0.5, False), (5.0, True)])
def test_a_budget_is_exceeded_by_a_share_of_itself(budget: float, converged: bool) -> None:
    unit = Constraint(name="kl", quantity=KL, sign=1.0, bound=budget, scale=1.0).unit
    monitor = KKTMonitor(CONFIG, ("r",), [unit])
    for step in range(20):
        monitor.observe(budget + 0.02, np.array([0.02]), np.array([1e-3 * step]), spread(), 0.0)
    assert monitor.converged() is converged
    assert monitor.residual() == pytest.approx(0.02 / budget, abs=0.01)
    assert (monitor.stuck() is not None) is (0.02 / budget > 2 * CONFIG.tolerance)


def test_noise_that_averages_out_does_not_prevent_convergence() -> None:
    monitor = KKTMonitor(CONFIG, ("r",))
    for step in range(20):
        sign = (-1) ** step
        monitor.observe(1.0, np.array([0.5 * sign]), np.array([2.0]), spread(), 1.0 + 0.05 * sign)
    assert monitor.converged()


def test_without_constraints_only_the_drifts_count() -> None:
    monitor = KKTMonitor(CONFIG, ("r",))
    for _ in range(20):
        monitor.observe(1.0, np.zeros(0), np.zeros(0), spread(), -3.0)
    assert monitor.converged()
    assert monitor.stuck() is None


def test_a_lagrangian_that_still_falls_has_not_converged_however_steady_the_kl() -> None:
    assert watch(20, gain=0.002).converged()
    assert watch(20, gain=0.01).residual() == 0.0
    assert not watch(20, gain=0.01).converged()  # 0.1 nats between the halves


def test_a_window_too_noisy_to_show_that_training_is_over_does_not_show_it() -> None:
    """By what a batch of 8 looks like: its drift is within tolerance in some windows, and is noise in all."""
    rng = np.random.default_rng(0)
    said, small = 0, 0
    for _ in range(200):
        monitor = KKTMonitor(CONFIG, ("r",))
        for value in rng.normal(scale=0.3, size=20):
            monitor.observe(1.0, np.zeros(0), np.zeros(0), spread(), value)
        drift, error = monitor._lagrangian_drift()
        small += drift <= CONFIG.tolerance
        said += monitor.converged()
        assert 0.3 * (0.2**0.5) / 2 < error < 0.3 * (0.2**0.5) * 2
    assert small > 10
    assert said == 0


@pytest.mark.parametrize(
    "change",
    [
        {"violation": 0.05, "rise": 0.1},  # within two tolerances
        {"violation": 1.0, "rise": 0.1, "fall": 0.02},  # improving
        {"violation": 1.0, "rise": 0.0},  # the multiplier rests
        {"violation": -1.0, "rise": 0.1},  # met
    ],
)
def test_what_is_not_stuck(change: dict[str, float]) -> None:
    assert watch(20, **change).stuck() is None


def test_what_is_stuck_comes_with_the_later_half_of_the_window() -> None:
    stuck = watch(30, violation=1.0, rise=0.1, fall=1e-3).stuck()
    assert stuck is not None
    assert stuck.index == 0
    np.testing.assert_allclose(stuck.violations, [1.0 - 1e-3 * 24.5])
    assert stuck.covariance.names == ("r",)
    np.testing.assert_allclose(stuck.covariance.values, [[25.5]])


def test_state_survives_json_and_keeps_the_window_moving() -> None:
    rng = np.random.default_rng(0)
    names = ("a", "b", "c")
    whole, first, second = (KKTMonitor(CONFIG, names) for _ in range(3))
    rows = [
        (
            float(rng.normal()),
            rng.normal(size=2),
            rng.uniform(size=2),
            RewardCovariance(names=names, values=rng.normal(size=(3, 3))),
            float(step),
        )
        for step in range(35)
    ]
    for row in rows[:15]:
        whole.observe(*row)
        first.observe(*row)
    second.load(json.loads(json.dumps(first.state())))
    for row in rows[15:]:
        whole.observe(*row)
        second.observe(*row)
        assert second.residual() == whole.residual()
    assert second.state() == whole.state()


def test_a_covariance_is_read_by_names_whatever_its_order() -> None:
    """Rewards of scales 1, 10 and 100, as a baseline lists them and as a spec does."""
    spec, baseline = ("a", "b", "c"), ("c", "a", "b")
    roots = np.random.default_rng(1).normal(size=(3, 5)) * np.array([[1.0], [10.0], [100.0]])
    order = [spec.index(name) for name in baseline]
    asked = RewardCovariance(names=spec, values=np.cov(roots))
    given = RewardCovariance(names=baseline, values=np.cov(roots[order]))
    np.testing.assert_allclose(given.between(spec, ("b",)), asked.between(spec, ("b",)))
    monitor = KKTMonitor(CONFIG, spec)
    for step in range(20):
        monitor.observe(1.0, np.ones(1), np.array([0.1 * step]), given, 0.0)
    stuck = monitor.stuck()
    assert stuck is not None
    np.testing.assert_allclose(stuck.covariance.between(baseline, baseline), np.cov(roots[order]))
    with pytest.raises(ValueError, match="has no shape"):
        RewardCovariance(names=spec, values=np.eye(2))


# What multipliers could still reach, on q = N(0, C) where the response to a tilt is the same everywhere: exact.


def reach(
    covariance: np.ndarray,
    bounds: list[float],
    multipliers: list[float],
    limit: float = 50.0,
    budget: float | None = None,
) -> float:
    names = [f"r{i}" for i in range(len(covariance))]
    scales = np.sqrt(np.diag(covariance))
    constraints = [
        Constraint(name=n, quantity=n, sign=-1.0, bound=b, scale=s)
        for n, b, s in zip(names[-len(bounds) :], bounds, scales[-len(bounds) :], strict=True)
    ]
    if budget is not None:
        constraints.append(Constraint(name="kl", quantity=KL, sign=1.0, bound=budget, scale=1.0))
    lagrangian = Lagrangian(
        objective=KL if budget is None else names[0],
        objective_scale=1.0 if budget is None else float(scales[0]),
        constraints=tuple(constraints),
        fixed={},
    )
    coefficients = lagrangian.coefficients(multipliers)
    tilt = np.array([coefficients.tilt().get(n, 0.0) for n in names])
    means = dict(zip(names, covariance @ tilt, strict=True)) | {KL: float(0.5 * tilt @ covariance @ tilt)}
    violations = np.array([c.violation(means[c.quantity]) / c.scale for c in constraints])
    order = np.random.default_rng(0).permutation(len(names))
    known = RewardCovariance(names=tuple(names[i] for i in order), values=covariance[np.ix_(order, order)])
    return least_violation(lagrangian, coefficients, violations, known, limit)


def test_a_gaussian_reward_reaches_what_its_largest_multiplier_allows() -> None:
    covariance = np.array([[0.04]])
    assert reach(covariance, [0.2 * 60.0], [10.0]) == pytest.approx(10.0)  # 60 σ wanted, 50 are the limit
    assert reach(covariance, [0.2 * 40.0], [10.0]) <= 0.0
    assert reach(covariance, [0.2 * 60.0], [10.0], limit=70.0) <= 0.0


def test_a_reward_that_does_not_vary_stays_violated() -> None:
    lagrangian = Lagrangian(
        objective=KL,
        objective_scale=1.0,
        constraints=(Constraint(name="r", quantity="r", sign=-1.0, bound=1.0, scale=1.0),),
        fixed={},
    )
    left = least_violation(lagrangian, lagrangian.coefficients([10.0]), np.array([0.5]), spread(1e-4), 50.0)
    assert left == pytest.approx(0.5 - 40 * 1e-4)


def test_two_rewards_that_pull_apart_share_the_violation() -> None:
    opposed = np.array([[1.0, -1.0], [-1.0, 1.0]])
    assert reach(opposed, [0.3, 0.5], [5.0, 5.0]) == pytest.approx(0.4)
    assert reach(opposed, [0.3, -0.3], [5.0, 5.0]) == pytest.approx(0.0, abs=1e-9)
    assert reach(np.array([[1.0, -0.9], [-0.9, 1.0]]), [0.5, 0.5], [1.0, 0.0]) <= 0.0


def test_a_budget_that_is_too_small_for_the_threshold() -> None:
    """``max E[r0]`` with ``KL <= B`` and ``E[r1] >= 1``, which alone costs ½ nat; both prices have risen."""
    independent = np.eye(2)
    assert reach(independent, [1.0], [20.0, 20.0], budget=0.1) == pytest.approx(0.2, abs=0.01)
    assert reach(independent, [1.0], [20.0, 20.0], budget=0.6) <= 0.0


def test_a_policy_that_lags_behind_its_multipliers_is_no_evidence() -> None:
    """The KL of a policy trained under a lower price: the price has since risen, and less KL is within reach."""
    lagrangian = Lagrangian(
        objective="r",
        objective_scale=1.0,
        constraints=(Constraint(name="kl", quantity=KL, sign=1.0, bound=0.5, scale=1.0),),
        fixed={},
    )
    left = least_violation(lagrangian, lagrangian.coefficients([3.0]), np.array([2.0]), spread(), 50.0)
    assert left <= 0.0
