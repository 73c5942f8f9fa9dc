"""Worst excess and its curve; mixtures are solved by a linear program of the tests' own."""

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from orchestrator.frontier.bounds.excess import (
    UpperBound,
    excess_curve,
    thresholds_of_box,
    usual_checkpoints,
    worst_excess,
)


def mixing(kl: np.ndarray, rewards: np.ndarray) -> UpperBound:
    """Least KL of a mixture: ``min w'K`` with ``w`` on the simplex and ``R'w >= b``."""

    def upper(thresholds: np.ndarray) -> np.ndarray:
        costs = []
        for asked in thresholds:
            solved = linprog(
                kl, A_ub=-rewards.T, b_ub=-asked, A_eq=np.ones((1, len(kl))), b_eq=[1.0], bounds=(0, None)
            )
            costs.append(solved.fun if solved.success else np.inf)
        return np.array(costs)

    return upper


def single(kl: np.ndarray, rewards: np.ndarray) -> UpperBound:
    """Least KL of one model."""

    def upper(thresholds: np.ndarray) -> np.ndarray:
        meets = (rewards >= thresholds[:, None]).all(axis=2)
        costs: np.ndarray = np.where(meets, kl, np.inf).min(axis=1, initial=np.inf)
        return costs

    return upper


def sphere(rewards: np.ndarray) -> np.ndarray:
    """``P(r) = ½ ‖r‖²``."""
    costs: np.ndarray = 0.5 * (rewards**2).sum(axis=1)
    return costs


# ---------------------------------------------------------------------- the worst


def test_the_chord_of_a_parabola_is_worst_in_its_middle() -> None:
    """Mixing the pretrained model and the one at 1 attains b/2; the excess over b²/2 is b (1 − b) / 2."""
    thresholds = np.linspace(0.0, 1.0, 101)[:, None]
    upper = mixing(np.array([0.0, 0.5]), np.array([[0.0], [1.0]]))
    found = worst_excess(upper(thresholds), sphere(thresholds), thresholds)
    assert found.excess == pytest.approx(0.125)
    assert found.thresholds == pytest.approx([0.5])
    assert (found.reached, found.excess_where_reached) == (1.0, found.excess)


def test_out_of_reach_is_the_worst_excess() -> None:
    thresholds = np.array([[0.2], [0.5], [0.9], [2.0]])
    least = np.array([0.02, 0.125, 0.405, np.inf])
    upper = single(np.array([0.3]), np.array([[0.6]]))
    found = worst_excess(upper(thresholds), least, thresholds)
    assert found.excess == np.inf
    assert found.thresholds == pytest.approx([0.9])
    assert found.reached == pytest.approx(2 / 3), "what nothing can reach does not count"
    assert found.excess_where_reached == pytest.approx(0.28)
    assert found.to_json(["a"])["thresholds"] == {"a": 0.9}


def test_nothing_to_judge_at() -> None:
    with pytest.raises(ValueError, match="no thresholds with a finite least KL"):
        worst_excess(np.zeros(2), np.array([np.inf, np.nan]), np.zeros((2, 1)))


def test_thresholds_lie_in_the_box() -> None:
    low, high = np.array([0.0, -2.0]), np.array([1.0, -2.0])
    drawn = thresholds_of_box(low, high, 200, np.random.default_rng(0))
    assert drawn.shape == (200, 2)
    assert ((drawn >= low) & (drawn <= high)).all()
    assert np.ptp(drawn[:, 0]) > 0.9
    for wrong in (np.array([-1.0, 0.0]), np.array([np.inf, 0.0])):
        with pytest.raises(ValueError, match="finite ends in order"):
            thresholds_of_box(low, wrong, 3, np.random.default_rng(0))


# ---------------------------------------------------------------------- the curve


def run(count: int, size: int = 2, seed: int = 0, exponent: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Trials that scatter above the sphere, in the order of finishing."""
    generator = np.random.default_rng(seed)
    rewards = generator.uniform(0, 1, (count, size)) ** exponent
    return sphere(rewards) * generator.uniform(1.0, 1.2, count), rewards


BOX = np.random.default_rng(5).uniform(0.1, 0.8, (15, 2))


def test_each_point_is_what_the_first_trials_reach() -> None:
    kl, rewards = run(12)
    kl[[2, 7]] = np.nan  # failed
    curve = excess_curve(kl, rewards, mixing, sphere(BOX), BOX, pretrained=np.zeros(2), prices=BOX)
    assert curve.trials.tolist() == list(range(1, 13))
    for count, excess, reached in zip(curve.trials, curve.excess, curve.reached, strict=True):
        models = np.flatnonzero(np.isfinite(kl[:count]))
        upper = mixing(np.append(0.0, kl[models]), np.vstack([np.zeros(2), rewards[models]]))
        costs = upper(BOX)
        assert excess == pytest.approx((costs - sphere(BOX)).max())
        assert reached == np.isfinite(costs).mean()
    assert (curve.last.excess, curve.last.reached) == (curve.excess[-1], curve.reached[-1])
    assert (np.diff(curve.excess[np.isfinite(curve.excess)]) <= 1e-12).all()


def test_trials_to_a_tolerance() -> None:
    kl, rewards = run(40, exponent=0.4)
    curve = excess_curve(kl, rewards, mixing, sphere(BOX), BOX, pretrained=np.zeros(2), prices=BOX)
    tolerance = float(np.median(curve.excess[np.isfinite(curve.excess)]))
    reached = curve.trials_to(tolerance)
    assert reached is not None
    assert curve.excess[reached - 1] <= tolerance
    assert reached == 1 or curve.excess[reached - 2] > tolerance
    assert curve.trials_to(-1.0) is None
    assert curve.to_json(["a", "b"])["curve"]["trials"][-1] == 40


def test_the_pretrained_model_is_there_before_any_trial() -> None:
    thresholds = np.array([[-0.5], [-0.1]])
    curve = excess_curve(
        np.empty(0),
        np.empty((0, 1)),
        single,
        np.zeros(2),
        thresholds,
        pretrained=np.zeros(1),
        prices=np.ones((1, 1)),
    )
    assert (curve.trials.tolist(), curve.excess.tolist()) == ([0], [0.0])


def test_trials_that_bring_no_model_are_paid_for() -> None:
    kl, rewards = np.array([np.nan, np.nan, 0.5]), np.array([[9.0], [9.0], [1.0]])
    curve = excess_curve(
        kl,
        rewards,
        mixing,
        np.array([0.125]),
        np.array([[0.5]]),
        pretrained=np.zeros(1),
        prices=np.ones((1, 1)),
    )
    assert curve.trials_to(0.2) == 3
    assert curve.reached.tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("count", [0, 1, 5, 128, 129, 1000, 100_000])
def test_usual_checkpoints(count: int) -> None:
    points = usual_checkpoints(count).tolist()
    assert points == sorted(set(points))
    assert (points[0], points[-1]) == (min(1, count), count)
    assert len(points) <= 128
    if 0 < count <= 128:
        assert points == list(range(1, count + 1))
    assert all(later <= 2 * earlier for earlier, later in itertools.pairwise(points))


@pytest.mark.parametrize("seed", range(3))
def test_of_many_trials_few_are_mixed_and_little_is_lost(seed: int) -> None:
    kl, rewards = run(700, seed=seed)
    kl[::7] = np.nan
    prices = thresholds_of_box(
        np.zeros(2), np.ones(2), 60, np.random.default_rng(0)
    )  # on the sphere prices are rewards
    sizes = []

    def counted(costs: np.ndarray, values: np.ndarray) -> UpperBound:
        sizes.append(len(costs))
        return mixing(costs, values)

    curve = excess_curve(
        kl,
        rewards,
        counted,
        sphere(BOX),
        BOX,
        pretrained=np.zeros(2),
        prices=prices,
        checkpoints=np.array([50, 400, 700]),
    )
    assert sizes[0] == 43
    assert max(sizes[1:]) <= 1 + 60 + 15 + 2
    for count, excess in zip(curve.trials, curve.excess, strict=True):
        models = np.flatnonzero(np.isfinite(kl[:count]))
        costs = mixing(np.append(0.0, kl[models]), np.vstack([np.zeros(2), rewards[models]]))(BOX)
        exact = (costs - sphere(BOX)).max()
        assert exact - 1e-9 <= excess <= exact + 0.02


def test_what_was_reached_stays_reached() -> None:
    """The first model is the best at no price any more once the others are there, and still what b = 0.5 needs."""
    middle, ends = np.array([[0.5]]), np.tile([[0.0], [1.0]], (200, 1))
    rewards = np.vstack([middle, ends])
    kl = np.append(0.2, 0.1 + 0.3 * ends[:, 0])
    curve = excess_curve(
        kl, rewards, single, np.zeros(1), middle, pretrained=np.zeros(1), prices=np.array([[0.1], [0.9]])
    )
    assert curve.excess[:8] == pytest.approx(0.2)
    assert curve.last.excess == pytest.approx(0.2)
