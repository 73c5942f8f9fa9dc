"""Bounds on the least KL against exact frontiers, linear programs and closed forms."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from support.models.exact_frontiers import random_frontier, reachable_box

from orchestrator.frontier.bounds.bounds import ROUNDING, Bounds, Box, FrontierPoint
from orchestrator.frontier.bounds.pieces import Pieces
from orchestrator.frontier.problems.exact import ExactProblem
from trainers.config import MixtureConfig, RewardConfig

FloatArray = np.ndarray


def cheapest_mixture(points: list[FrontierPoint], bounds: FloatArray) -> float:
    """The linear program as it is written; infinite where it has no solution."""
    solved = linprog(
        [point.kl for point in points],
        A_ub=-np.array([point.rewards for point in points]).T,
        b_ub=-bounds,
        A_eq=np.ones((1, len(points))),
        b_eq=[1.0],
    )
    return float(solved.fun) if solved.success else np.inf


def least_shortfall(points: list[FrontierPoint], bounds: FloatArray, widths: FloatArray) -> float:
    count, size = len(points), len(bounds)
    rewards = np.array([point.rewards for point in points])
    solved = linprog(
        np.append(np.zeros(count), np.ones(size)),
        A_ub=np.column_stack([-rewards.T / widths[:, None], -np.eye(size)]),
        b_ub=-bounds / widths,
        A_eq=np.append(np.ones(count), np.zeros(size))[None],
        b_eq=[1.0],
    )
    return float(solved.fun)


def random_trials(seed: int, rewards: int, count: int) -> tuple[list[FrontierPoint], Box]:
    """Weighted optima, and a box that some of them do not reach."""
    frontier = random_frontier(seed, rewards)
    rng = np.random.default_rng(seed)
    points = [frontier.pretrained]
    while len(points) < count:
        prices = rng.exponential(1.0, rewards) * (rng.uniform(size=rewards) < 0.8) / frontier.std
        point = frontier.tilted(prices)
        if point.kl < 8:
            points.append(point)
    best = np.max([point.rewards for point in points], axis=0)
    return points, Box(low=frontier.mean, high=frontier.mean + np.maximum(best - frontier.mean, frontier.std))


def gaussian(*rewards: RewardConfig, dimension: int = 1) -> ExactProblem:
    identity = tuple(map(tuple, np.eye(dimension).tolist()))
    return ExactProblem(
        MixtureConfig(weights=(1.0,), means=((0.0,) * dimension,), covariances=(identity,)), rewards
    )


@given(seed=st.integers(0, 10_000), rewards=st.integers(1, 4))
@settings(max_examples=25)
def test_vertices_of_the_dual_are_the_linear_program(seed: int, rewards: int) -> None:
    points, box = random_trials(seed, rewards, 12)
    bounds = Bounds(points, box)
    places = box.unscaled(np.random.default_rng(seed).uniform(-0.2, 1.1, (20, rewards)))
    relaxed = places - ROUNDING * box.widths
    expected = np.array([cheapest_mixture(points, place) for place in relaxed])
    missing = np.array([least_shortfall(points, place, box.widths) for place in relaxed])
    assert bounds.shortfall(places) == pytest.approx(missing, abs=1e-7)
    sure = (missing == 0) | (missing > 1e-7)  # the solvers' own tolerances decide the rest
    assert bounds.upper(places)[sure] == pytest.approx(expected[sure], abs=1e-7)


@pytest.mark.parametrize("rewards", [5, 6])
def test_six_constraints_are_exact_too(rewards: int) -> None:
    points, box = random_trials(rewards, rewards, 25)
    bounds = Bounds(points, box)
    reached = np.array([point.rewards for point in points])
    mixed = np.random.default_rng(0).dirichlet(np.full(len(points), 0.3), 40) @ reached
    expected = [cheapest_mixture(points, place - ROUNDING * box.widths) for place in mixed]
    assert bounds.upper(mixed) == pytest.approx(expected, abs=1e-7)


@given(seed=st.integers(0, 10_000), rewards=st.integers(1, 3), trials=st.integers(1, 12))
@settings(max_examples=25)
def test_the_least_kl_lies_between_the_bounds(seed: int, rewards: int, trials: int) -> None:
    frontier, box = reachable_box(seed, rewards)
    rng = np.random.default_rng(seed)
    asked = box.unscaled(rng.uniform(size=(trials, rewards)))
    points = [frontier.pretrained, frontier.solved(box.high), *(frontier.solved(place) for place in asked)]
    bounds = Bounds(points, box)
    places = box.unscaled(rng.uniform(size=(30, rewards)))
    least = frontier.least_kl(places)
    assert (bounds.lower(places) <= least + 1e-9).all()
    # U is of thresholds lowered by rounding.
    eased = frontier.least_kl(places - ROUNDING * box.widths)
    assert (eased <= bounds.upper(places) + 1e-9).all()
    # Both are exact where a trial was.
    assert bounds.lower(asked) == pytest.approx(frontier.least_kl(asked), abs=1e-7)
    assert bounds.upper(asked) == pytest.approx(frontier.least_kl(asked), abs=1e-4)


@given(seed=st.integers(0, 10_000), rewards=st.integers(1, 4), corner=st.booleans())
@settings(max_examples=25)
def test_no_threshold_has_a_larger_gap_than_the_turning_points(seed: int, rewards: int, corner: bool) -> None:
    if corner:
        frontier, box = reachable_box(seed, rewards)
        asked = box.unscaled(np.random.default_rng(seed).uniform(size=(6, rewards)))
        points = [
            frontier.pretrained,
            frontier.solved(box.high),
            *(frontier.solved(place) for place in asked),
        ]
    else:
        points, box = random_trials(seed, rewards, 9)
    bounds = Bounds(points, box)
    found = bounds.turning_points(bounds.reached())
    largest = bounds.gaps(found).max(initial=0.0)
    assert np.isfinite(largest)
    places = box.unscaled(np.random.default_rng(seed).uniform(size=(3000, rewards)))
    places = places[bounds.shortfall(places) == 0]
    if len(found):
        assert bounds.gaps(places).max(initial=0.0) <= largest + 1e-8
    else:  # next to nothing of the box is reached
        assert len(places) < 30


@given(
    seed=st.integers(0, 10_000),
    rewards=st.integers(1, 3),
    deviations=st.sampled_from([0.0, 1.0, 2.0]),
)
@settings(max_examples=60)
def test_the_lower_bound_stays_below_the_upper_one_whatever_trials_claim(
    seed: int, rewards: int, deviations: float
) -> None:
    rng = np.random.default_rng(seed)
    points = [FrontierPoint.pretrained(np.zeros(rewards))] + [
        FrontierPoint(
            rewards=rng.normal(size=rewards),
            kl=float(rng.exponential()),
            multipliers=rng.exponential(3.0, rewards),
            reward_errors=rng.exponential(0.1, rewards),
            kl_error=float(rng.exponential(0.1)),
        )
        for _ in range(8)
    ]
    box = Box(low=np.full(rewards, -1.0), high=np.ones(rewards))
    bounds = Bounds(points, box, deviations=deviations)
    places = box.unscaled(rng.uniform(size=(200, rewards)))
    lower, upper = bounds.lower(places), bounds.upper(places)
    assert (lower >= 0).all()
    assert (lower <= upper + 1e-4).all()


def test_one_gaussian_in_closed_form() -> None:
    problem = gaussian(RewardConfig(name="x", kind="linear", parameters={"direction": (1.0,)}))
    half = problem.least_kl({"x": 1.0})
    end = FrontierPoint(rewards=np.ones(1), kl=half.kl, multipliers=np.array([half.multipliers["x"]]))
    box = Box(low=np.zeros(1), high=np.ones(1))
    bounds = Bounds([FrontierPoint.pretrained(np.zeros(1)), end], box)
    places = np.array([[0.25], [0.5], [0.75]])
    assert bounds.upper(places) == pytest.approx([0.125, 0.25, 0.375], abs=1e-5)  # the chord b / 2
    assert bounds.lower(places) == pytest.approx([0.0, 0.0, 0.25])  # the tangent b − ½
    found = bounds.turning_points()
    worst = found[np.argmax(bounds.gaps(found))]
    assert worst == pytest.approx([0.5])
    assert bounds.gaps(worst[None]) == pytest.approx([0.25], abs=1e-5)
    assert bounds.prices(np.array([0.8])) == pytest.approx([1.0])
    assert bounds.prices(np.array([0.5])) == pytest.approx([0.5])  # between 0 and 1 at the kink


def test_noise_widens_both_bounds_by_the_stated_amount() -> None:
    box = Box(low=np.zeros(2), high=np.ones(2))
    point = FrontierPoint(
        rewards=np.ones(2),
        kl=1.0,
        multipliers=np.array([2.0, 0.5]),
        reward_errors=np.array([0.02, 0.1]),
        kl_error=0.05,
    )
    pretrained = FrontierPoint.pretrained(np.zeros(2))
    corner = np.array([[0.9, 0.9]])
    for deviations in (0.0, 1.0, 2.0):
        bounds = Bounds([pretrained, point], box, deviations=deviations)
        error = 0.05 + 2.0 * 0.02 + 0.5 * 0.1
        # The tangent of the trial stands above the pretrained model by 1.5 nats: the trial itself limits it.
        tangent = 1.0 - deviations * error - 2.5 * 0.1
        assert bounds.lower(corner)[0] == pytest.approx(min(tangent, 2.5 * 0.9))
        share = 0.9 / (1.0 - 0.1 * deviations)  # of the trial, in the reward that is known worst
        expected = share * (1.0 + 0.05 * deviations) if share <= 1 else np.inf
        assert bounds.upper(corner)[0] == pytest.approx(expected, abs=1e-4)


def test_a_tangent_touches_the_lowest_trial_not_its_own() -> None:
    # The second trial is twice as dear as it should be: its own tangent would lie above the first.
    first = FrontierPoint(rewards=np.array([1.0]), kl=0.5, multipliers=np.array([1.0]))
    second = FrontierPoint(rewards=np.array([1.2]), kl=1.44, multipliers=np.array([1.2]))
    box = Box(low=np.zeros(1), high=np.array([1.2]))
    bounds = Bounds([FrontierPoint.pretrained(np.zeros(1)), first, second], box)
    assert bounds.lower(np.array([[1.0]])) == pytest.approx([0.5])
    assert bounds.lower(np.array([[1.2]])) == pytest.approx([0.5 + 1.2 * 0.2])


@pytest.mark.parametrize("miss", [1e-9, 9e-7])
def test_a_reward_that_misses_its_threshold_by_rounding_is_there(miss: float) -> None:
    frontier, box = reachable_box(3, 2)
    point = frontier.solved(box.high - miss * box.widths)
    bounds = Bounds([frontier.pretrained, point], box)
    assert bounds.upper(box.high[None])[0] == pytest.approx(point.kl)
    assert bounds.shortfall(box.high[None])[0] == 0


def test_a_feasible_trial_counts_as_reaching_its_thresholds() -> None:
    frontier, box = reachable_box(3, 2)
    short = frontier.solved(box.high - 0.03 * frontier.std)
    error = 0.01 * frontier.std
    missed = replace(short, reward_errors=error)
    bounds = Bounds([frontier.pretrained, missed], box)
    corner = box.high[None]
    assert np.isinf(bounds.upper(corner)[0])
    assert bounds.shortfall(corner)[0] == pytest.approx((0.03 * frontier.std / box.widths).sum(), rel=1e-2)
    feasible = replace(missed, met=box.high)
    for deviations in (0.0, 2.0):
        bounds = Bounds([frontier.pretrained, feasible], box, deviations=deviations)
        assert bounds.upper(corner)[0] == pytest.approx(short.kl, rel=1e-4)
        # Its tangent stands at the thresholds as well, or at its rewards where noise may have put them higher.
        assert bounds.lower(corner)[0] <= short.kl + 1e-9
    # Thresholds that it exceeds say no more than its rewards do.
    modest = replace(short, met=np.array([-np.inf, box.low[1]]))
    assert np.isinf(Bounds([frontier.pretrained, modest], box).upper(corner)[0])


def test_a_fixed_threshold_is_a_slice_of_the_frontier() -> None:
    frontier, box = reachable_box(4, 3)
    middle = 0.5 * (box.low + box.high)[1]
    low, high = box.low.copy(), box.high.copy()
    low[1] = high[1] = middle
    sliced = Box(low=low, high=high, spread=frontier.std)
    assert sliced.free.tolist() == [True, False, True]
    rng = np.random.default_rng(0)
    # Asked inside the box, also off the slice.
    points = [frontier.pretrained, frontier.solved(high)]
    points += [frontier.solved(box.unscaled(rng.uniform(size=3))) for _ in range(8)]
    bounds, whole = Bounds(points, sliced), Bounds(points, box)
    found = bounds.turning_points(bounds.reached())
    assert (found[:, 1] == middle).all()
    places = sliced.unscaled(rng.uniform(size=(2000, 3)) * sliced.free)
    places = places[bounds.shortfall(places) == 0]
    assert len(places) > 500
    assert bounds.gaps(places).max() <= bounds.gaps(found).max() + 1e-8
    assert bounds.upper(places) == pytest.approx(whole.upper(places), abs=1e-4)  # rounding is of other widths
    assert bounds.lower(places) == pytest.approx(whole.lower(places))


def test_a_runaway_multiplier_is_a_wall_and_breaks_nothing() -> None:
    frontier, box = reachable_box(5, 2)
    inside = frontier.solved(box.unscaled(np.array([0.5, 0.5])))
    runaway = FrontierPoint(
        rewards=box.unscaled(np.array([0.8, 0.8])), kl=40.0, multipliers=np.array([1e9, 1e3]) / box.widths
    )
    bounds = Bounds([frontier.pretrained, inside, runaway], box)
    found = bounds.turning_points(bounds.reached())
    assert np.isfinite(bounds.gaps(found)).all()
    places = box.unscaled(np.random.default_rng(0).uniform(size=(500, 2)))
    assert bounds.lower(places[box.scaled(places)[:, 0] > 0.81]).min() > 50
    reached = places[bounds.shortfall(places) == 0]
    assert bounds.gaps(reached).max() <= bounds.gaps(found).max() + 1e-6


def test_a_model_without_multipliers_is_mixed_and_supports_no_tangent() -> None:
    box = Box(low=np.zeros(1), high=np.ones(1))
    member = FrontierPoint(rewards=np.ones(1), kl=2.0)
    bounds = Bounds([FrontierPoint.pretrained(np.zeros(1)), member], box)
    assert bounds.upper(np.array([[0.5]])) == pytest.approx([1.0], abs=1e-4)
    assert bounds.lower(np.array([[0.5]])) == pytest.approx([0.0])


def test_where_hardly_anything_is_reached_there_are_no_turning_points() -> None:
    box = Box(low=np.zeros(2), high=np.ones(2))
    bounds = Bounds([FrontierPoint.pretrained(np.zeros(2))], box)
    assert bounds.turning_points(bounds.reached()).shape == (0, 2)
    assert len(bounds.turning_points()) >= 4


def of_a_ball(dimension: int, trials: int, seed: int = 0) -> list[FrontierPoint]:
    """Independent standard normal rewards, so that P(b) = ½ ‖b‖², and optima at random prices of half a nat at most."""
    rng = np.random.default_rng(seed)
    prices = rng.exponential(size=(trials, dimension))
    prices *= (rng.uniform(size=trials) ** (1 / dimension) / np.linalg.norm(prices, axis=1))[:, None]
    return [FrontierPoint.pretrained(np.zeros(dimension))] + [
        FrontierPoint(rewards=price, kl=0.5 * float(price @ price), multipliers=price) for price in prices
    ]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("dimension", [2, 3, 4])
def test_the_programs_find_the_gap_that_the_vertices_have(
    dimension: int, fixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of thresholds only a part of which are reached: two ways to the same largest gap."""
    low, high = np.zeros(dimension), np.ones(dimension)
    if fixed:
        low[0] = high[0] = 0.3
    for seed in range(3):
        bounds = Bounds(of_a_ball(dimension, 15, seed), Box(low=low, high=high))
        listed = bounds.widest()
        monkeypatch.setattr("orchestrator.frontier.bounds.bounds._LISTED", 0)
        programs = bounds.widest()
        monkeypatch.undo()
        assert bounds.gaps(listed).max() > 0.05
        assert bounds.gaps(programs).max() == pytest.approx(bounds.gaps(listed).max(), abs=1e-4)
        assert len(programs) >= 20, "others, for whoever was there before"
        if fixed:
            assert (programs[:, 0] == 0.3).all()


@pytest.mark.parametrize("dimension", [5, 6])
def test_the_programs_of_six_thresholds(dimension: int) -> None:
    points = of_a_ball(dimension, 40)
    box = Box(low=np.zeros(dimension), high=np.ones(dimension))
    bounds = Bounds(points, box)
    found = bounds.widest()
    assert len(found) < 2000, "of about a hundred thousand vertices"
    assert bounds.shortfall(found).max() == 0.0
    mixed = np.random.default_rng(1).dirichlet(np.full(len(points), 0.1), 5000) @ [p.rewards for p in points]
    assert bounds.gaps(mixed).max() <= bounds.gaps(found).max() + 1e-6
    # L at the place of the largest gap is below the least KL, U above.
    place = found[np.argmax(bounds.gaps(found))]
    assert bounds.lower(place[None])[0] <= 0.5 * place @ place <= bounds.upper(place[None])[0] + 1e-4


def test_the_largest_of_many_pieces_is_found_block_by_block() -> None:
    rng = np.random.default_rng(0)
    for places, pieces in ((1, 1), (511, 513), (1025, 2049)):
        at, slopes, offsets = (
            rng.normal(size=(places, 3)),
            rng.normal(size=(pieces, 3)),
            rng.normal(size=pieces),
        )
        table = at @ slopes.T + offsets
        assert Pieces(slopes=slopes, offsets=offsets)(at) == pytest.approx(table.max(axis=1))


@pytest.mark.parametrize("seed", range(6))
def test_planes_that_all_but_meet_in_one_point(seed: int) -> None:
    """Six rewards alike, as solvers find them: of most of these Qhull alone says that its facets are too wide."""
    rng = np.random.default_rng(seed)
    pairs = rng.permuted(np.tile([0.6, 0.6, -0.1, -0.1, -0.1, -0.1], (9, 1)), axis=1)
    rewards = np.concatenate([0.5 * np.eye(6), 0.4 * (1.0 - np.eye(6)), pairs, np.full((1, 6), 0.3)])
    rewards += 1e-12 * rng.normal(size=rewards.shape)
    points = [FrontierPoint(rewards=row, kl=0.5 * float(row @ row)) for row in rewards]
    points.append(FrontierPoint.pretrained(np.zeros(6)))
    box = Box(low=np.zeros(6), high=np.full(6, 2.0))
    bounds = Bounds(points, box)
    assert bounds.shortfall(bounds.widest()).max() == 0.0
    places = np.maximum(
        rng.dirichlet(np.full(len(points), 0.3), 40) @ [point.rewards for point in points], 0.0
    )
    eased = places - ROUNDING * box.widths
    assert bounds.upper(places) == pytest.approx(
        [cheapest_mixture(points, place) for place in eased], abs=1e-6
    )


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="range from low"):
        Box(low=np.zeros(2), high=np.array([1.0, -0.5]))
    with pytest.raises(ValueError, match="range from low"):
        Box(low=np.zeros(1), high=np.array([np.inf]))
    with pytest.raises(ValueError, match="range from low"):
        Box(low=np.ones(2), high=np.ones(2))
    with pytest.raises(ValueError, match="standard deviation above 0"):
        Box(low=np.zeros(1), high=np.ones(1), spread=np.zeros(1))
    with pytest.raises(ValueError, match="one number for each reward"):
        FrontierPoint(rewards=np.zeros(1), kl=0.0, met=np.array([np.inf]))
    with pytest.raises(ValueError, match="one length"):
        Box(low=np.zeros(1), high=np.ones(2))
    with pytest.raises(ValueError, match="multipliers must be finite and >= 0"):
        FrontierPoint(rewards=np.zeros(1), kl=0.0, multipliers=np.array([-1.0]))
    with pytest.raises(ValueError, match="reward_errors have shape"):
        FrontierPoint(rewards=np.zeros(1), kl=0.0, reward_errors=np.zeros(2))
    with pytest.raises(ValueError, match="finite figures"):
        FrontierPoint(rewards=np.array([np.nan]), kl=0.0)
    with pytest.raises(ValueError, match="finite figures"):
        FrontierPoint(rewards=np.zeros(1), kl=np.inf)
