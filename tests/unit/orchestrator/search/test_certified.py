"""The certified search with exact optima in place of trials, and with trials that err, fail and fall short."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from support.models.exact_frontiers import ExactFrontier, reachable_box
from support.tiers import further

from orchestrator.frontier.bounds.bounds import ROUNDING, Bounds, Box, FrontierPoint
from orchestrator.frontier.problems.exact import ExactProblem
from orchestrator.search.certified import CertifiedSearch, Gap, TrialRecord
from trainers.config import MixtureConfig, RewardConfig

FloatArray = np.ndarray
Trainer = Callable[[FloatArray], FrontierPoint | None]


def certified(
    frontier: ExactFrontier, box: Box, *, tolerance: float = 0.1, max_trials: int = 40, **options: object
) -> CertifiedSearch:
    return CertifiedSearch(
        box,
        frontier.pretrained,
        tolerance=tolerance,
        max_trials=max_trials,
        **options,  # type: ignore[arg-type]
    )


def drive(
    search: CertifiedSearch, train: Trainer, *, at_once: int = 1
) -> tuple[list[TrialRecord], list[Gap]]:
    """Run trials to the end, ``at_once`` at a time; those started last end first now and then."""
    running: list[FloatArray] = []
    records: list[TrialRecord] = []
    gaps: list[Gap] = []
    while True:
        while len(running) < at_once and (asked := search.ask()) is not None:
            running.append(asked)
        if not running:
            assert search.finished
            return records, gaps
        asked = running.pop(-1 if len(records) % 3 == 2 else 0)
        records.append(TrialRecord(thresholds=asked, point=train(asked)))
        gaps.append(search.tell(records[-1]))


def questions(records: list[TrialRecord]) -> FloatArray:
    return np.array([record.thresholds for record in records])


def closest(records: list[TrialRecord], box: Box) -> float:
    """Smallest distance of any two questions, widths in the coordinate that differs most."""
    scaled = box.scaled(questions(records))
    distances = np.abs(scaled[:, None] - scaled).max(axis=2)
    return float(distances[np.triu_indices(len(scaled), 1)].min())


def conflicting(dimension: int = 2) -> tuple[ExactFrontier, Box]:
    """Rewards for being near to different places, and a box whose far corner no distribution reaches."""
    identity = tuple(map(tuple, np.eye(dimension).tolist()))
    mixture = MixtureConfig(
        weights=(0.6, 0.4), means=((0.0,) * dimension, (1.0,) * dimension), covariances=(identity, identity)
    )
    rewards = [
        RewardConfig(
            name=f"near{axis}",
            kind="quadratic",
            parameters={"center": tuple((1.2 * np.eye(dimension)[axis]).tolist()), "scale": 0.5},
        )
        for axis in range(dimension)
    ]
    frontier = ExactFrontier.of(ExactProblem(mixture, rewards))
    return frontier, Box(low=frontier.mean, high=np.full(dimension, -0.1), spread=frontier.std)


@pytest.mark.parametrize(("rewards", "seed"), [(1, 0), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1)])
def test_it_reaches_its_tolerance_and_every_threshold_is_answered_within_it(rewards: int, seed: int) -> None:
    frontier, box = reachable_box(seed, rewards)
    search = certified(frontier, box, tolerance=0.15, exact=True)
    records, gaps = drive(search, frontier.solved)
    assert search.reason == "tolerance"
    assert gaps[-1].gap <= 0.15
    assert gaps[-1].kind == "proven"
    assert gaps[-1].unreached == 0
    assert len(records) < 30
    assert questions(records)[0] == pytest.approx(box.high)
    points = [frontier.pretrained, *(record.point for record in records if record.point)]
    places = box.unscaled(np.random.default_rng(seed).uniform(size=(100, rewards)))
    excess = Bounds(points, box).upper(places) - frontier.least_kl(places)
    assert excess.max() <= 0.15
    # With the far corner reached, trials only close the gap.
    assert all(after.gap <= before.gap + 1e-6 for before, after in pairwise(gaps))


@pytest.mark.parametrize("rewards", [2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_the_gap_is_never_below_the_true_one_and_the_least_that_its_trials_can_prove(
    seed: int, rewards: int
) -> None:
    frontier, box = reachable_box(seed, rewards)
    search = certified(frontier, box, tolerance=1e-3, max_trials=14, exact=True)
    places = box.unscaled(np.random.default_rng(seed).uniform(size=(150, rewards)))
    least = frontier.least_kl(places)
    points = [frontier.pretrained]
    while (asked := search.ask()) is not None:
        points.append(frontier.solved(asked))
        gap = search.tell(TrialRecord(thresholds=asked, point=points[-1]))
        bounds = Bounds(points, box)
        assert (bounds.lower(places) <= least + 1e-6).all()
        assert (least <= bounds.upper(places) + 1e-6).all()
        assert bounds.gaps(places).max() <= gap.gap + 1e-6
        assert bounds.gaps(gap.thresholds[None])[0] == pytest.approx(gap.gap, abs=1e-9)
        assert gap.upper - gap.lower == pytest.approx(gap.gap)
        # Both bounds are convex, rise, and go through every trial, with its prices: either may be the true frontier as
        # far as these trials tell, so that no smaller gap follows from them. (A threshold may be missed by ROUNDING.)
        rewards_of, prices = (
            np.array([getattr(point, name) for point in points]) for name in ("rewards", "multipliers")
        )
        kl = np.array([point.kl for point in points])
        slack = 2 * ROUNDING * (1.0 + prices.max(axis=0) @ box.widths)
        assert bounds.lower(rewards_of) == pytest.approx(kl, abs=slack)
        assert bounds.upper(rewards_of) == pytest.approx(kl, abs=slack)


def test_the_gap_of_ten_trials_is_about_twice_the_true_one() -> None:
    """A single one may be several times as large, by the path that the search took; half of them are within 3 times."""
    ratios = []
    for seed, rewards in product(range(6), (2, 3)):
        frontier, box = reachable_box(seed, rewards)
        search = certified(frontier, box, tolerance=1e-3, max_trials=10, exact=True)
        records, gaps = drive(search, frontier.solved)
        bounds = Bounds([frontier.pretrained, *(record.point for record in records if record.point)], box)
        turns = bounds.turning_points()
        turns = turns[np.argsort(-bounds.gaps(turns))[:20]]
        ratios.append(gaps[-1].gap / (bounds.upper(turns) - frontier.least_kl(turns)).max())
    assert min(ratios) >= 1.0
    assert np.median(ratios) <= 3.0


def test_six_constraints() -> None:
    frontier, box = reachable_box(0, 6)
    search = certified(frontier, box, max_trials=14, exact=True)
    records, gaps = drive(search, frontier.solved, at_once=2)
    assert search.reason == "max_trials"
    assert len(records) == 14
    assert closest(records, box) > 0.01
    places = box.unscaled(np.random.default_rng(0).uniform(size=(60, 6)))
    points = [frontier.pretrained, *(record.point for record in records if record.point)]
    bounds = Bounds(points, box)
    least = frontier.least_kl(places)
    assert (bounds.lower(places) <= least + 1e-9).all()
    assert (least <= bounds.upper(places) + 1e-4).all()
    assert (bounds.upper(places) - least).max() <= gaps[-1].gap
    assert gaps[-1].gap < 0.8 * gaps[0].gap


def test_six_constraints_of_a_box_out_of_reach() -> None:
    """Independent standard normal rewards, P(b) = ½ ‖b‖², and models that never go farther than one nat."""
    box = Box(low=np.zeros(6), high=np.ones(6))
    search = CertifiedSearch(
        box, FrontierPoint.pretrained(np.zeros(6)), tolerance=0.05, max_trials=14, exact=True
    )

    def train(asked: FloatArray) -> FrontierPoint:
        reached = asked * min(1.0, np.sqrt(2.0 / (asked @ asked)))
        return FrontierPoint(rewards=reached, kl=0.5 * float(reached @ reached), multipliers=reached)

    records, gaps = drive(search, train, at_once=2)
    points = [FrontierPoint.pretrained(np.zeros(6)), *(record.point for record in records if record.point)]
    mixed = np.random.default_rng(0).dirichlet(np.full(len(points), 0.2), 500) @ [p.rewards for p in points]
    excess = Bounds(points, box).upper(mixed) - 0.5 * (mixed**2).sum(axis=1)
    assert np.isfinite(excess).all()
    assert excess.max() <= gaps[-1].gap


@pytest.mark.parametrize("rewards", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_three_at_once_ask_different_questions_and_need_few_more(seed: int, rewards: int) -> None:
    frontier, box = reachable_box(seed, rewards)
    alone, _ = drive(certified(frontier, box, tolerance=0.15), frontier.solved)
    search = certified(frontier, box, tolerance=0.15)
    together, _ = drive(search, frontier.solved, at_once=3)
    assert search.reason == "tolerance"
    assert closest(together, box) > 0.01
    assert len(together) <= 1.35 * len(alone) + 2


def test_it_waits_when_running_trials_are_expected_to_close_the_gap() -> None:
    frontier, box = reachable_box(1, 2)
    search = certified(frontier, box, tolerance=0.5)
    asked = []
    while (thresholds := search.ask()) is not None:
        asked.append(thresholds)
    assert 2 <= len(asked) < 15
    assert not search.finished
    assert search.reason is None
    for thresholds in asked:
        search.tell(TrialRecord(thresholds=thresholds, point=frontier.solved(thresholds)))
    drive(search, frontier.solved)
    assert search.reason == "tolerance"


def test_a_prediction_prices_running_trials_before_there_is_an_upper_bound() -> None:
    frontier, box = reachable_box(1, 2)
    seen: list[FloatArray] = []

    def predict(thresholds: FloatArray) -> FrontierPoint:
        seen.append(thresholds)
        return frontier.solved(thresholds)

    search = certified(frontier, box, predict=predict)
    told = certified(frontier, box)
    first = search.ask()
    assert first is not None
    second = search.ask()
    told.tell(TrialRecord(thresholds=box.high, point=frontier.solved(box.high)))
    # A perfect prediction of the corner leads where the corner itself does.
    assert second == pytest.approx(told.ask())
    assert seen[0] == pytest.approx(box.high)


@pytest.mark.parametrize("at_once", [1, 3])
def test_told_again_in_any_order_it_is_the_same_search(at_once: int) -> None:
    frontier, box = reachable_box(2, 3)
    search = certified(frontier, box, max_trials=9)
    records, gaps = drive(search, frontier.solved, at_once=at_once)
    for cut in (0, 1, 4, 7):
        one, two = certified(frontier, box, max_trials=9), certified(frontier, box, max_trials=9)
        for record in records[:cut]:
            one.tell(record)
        for record in reversed(records[:cut]):
            two.tell(record)
        if cut:
            assert one.gap.gap == gaps[cut - 1].gap
            assert (one.gap.thresholds == gaps[cut - 1].thresholds).all()
        for _ in range(2):
            first, second = one.ask(), two.ask()
            assert first is not None
            assert (first == second).all()
        if at_once == 1:  # what the search that was not killed asked for
            fresh = certified(frontier, box, max_trials=9)
            for record in records[:cut]:
                fresh.tell(record)
            assert (fresh.ask() == records[cut].thresholds).all()


@pytest.mark.parametrize(("dimension", "at_once"), [(2, 1), (3, 3), *further((2, 3), (3, 1))])
def test_a_far_corner_out_of_reach_is_cut_and_the_rest_is_searched(dimension: int, at_once: int) -> None:
    frontier, box = conflicting(dimension)
    search = certified(frontier, box, tolerance=0.3, max_trials=30, exact=True)
    records, gaps = drive(search, lambda asked: frontier.stopped(asked, 4.0), at_once=at_once)
    asked = box.scaled(questions(records))
    assert (asked[0] == 1.0).all()
    assert (np.abs(asked[1:] - 1.0).max(axis=1) > 0.05).all()
    assert closest(records, box) > 5e-3
    points = [record.point for record in records if record.point]
    missed = [
        (point.rewards < record.thresholds - 1e-3 * box.widths).any()
        for record, point in zip(records, points, strict=True)
    ]
    assert missed[0]
    assert 1 < sum(missed) <= 0.6 * len(records)  # it finds where the reach ends, and looks inside as well
    assert gaps[-1].unreached < 0.5 * gaps[0].unreached
    # Thresholds that can be reached at 3 nats are reached, and the gap bounds their excess.
    places = box.unscaled(np.random.default_rng(0).uniform(size=(300, dimension)))
    least = frontier.least_kl(places)
    bounds = Bounds([frontier.pretrained, *points], box)
    upper = bounds.upper(places)
    assert np.isfinite(upper[least < 3.0]).mean() > 0.97
    assert np.isinf(upper[least > 4.1]).all()
    reached = np.isfinite(upper)
    assert (upper[reached] - least[reached]).max() <= gaps[-1].gap + 1e-6
    assert gaps[-1].gap < 0.8 * gaps[2].gap


def test_rewards_that_exclude_each_other_leave_nothing_to_ask() -> None:
    # x and −x: what one gains the other loses, and nothing of the box beyond its corners is reached.
    mixture = MixtureConfig(weights=(1.0,), means=((0.0,),), covariances=(((1.0,),),))
    rewards = [
        RewardConfig(name=name, kind="linear", parameters={"direction": (sign,)})
        for name, sign in (("right", 1.0), ("left", -1.0))
    ]
    frontier = ExactFrontier.of(ExactProblem(mixture, rewards))
    box = Box(low=np.zeros(2), high=np.ones(2))

    def train(asked: FloatArray) -> FrontierPoint:
        # Both multipliers run away together and the model stays where the violations are equal.
        middle = 0.5 * (asked[0] - asked[1])
        return FrontierPoint(
            rewards=np.array([middle, -middle]), kl=0.5 * middle**2, multipliers=20.0 + np.zeros(2)
        )

    search = certified(frontier, box, max_trials=25)
    records, gaps = drive(search, train)
    assert search.reason == "nothing left"
    assert len(records) < 10
    assert gaps[-1].unreached == pytest.approx(0.0, abs=0.06)
    assert gaps[-1].gap == np.inf


def test_failed_trials_are_asked_once_more_and_then_left_alone() -> None:
    frontier, box = reachable_box(1, 2)
    hole = box.unscaled(np.array([0.6, 0.6]))

    def train(asked: FloatArray) -> FrontierPoint | None:
        crashed = np.abs(box.scaled(asked) - box.scaled(hole)).max() < 0.3
        return None if crashed else frontier.solved(asked)

    search = certified(frontier, box, tolerance=0.02, max_trials=40)
    records, _ = drive(search, train, at_once=2)
    failed = box.scaled(np.array([r.thresholds for r in records if r.point is None]))
    assert len(failed) >= 2
    for place in failed:
        assert (np.abs(failed - place).max(axis=1) < 1e-9).sum() <= 2
    succeeded = [record for record in records if record.point is not None]
    assert len(succeeded) > 10
    assert closest(succeeded, box) > 5e-4


def test_a_far_corner_that_always_crashes_does_not_stop_the_rest() -> None:
    frontier, box = reachable_box(2, 2)
    search = certified(frontier, box, tolerance=0.1, max_trials=25)
    records, gaps = drive(search, lambda asked: None if (asked == box.high).all() else frontier.solved(asked))
    corners = (questions(records) == box.high).all(axis=1)
    assert corners.sum() == 2
    assert gaps[-1].gap < 0.6
    assert gaps[-1].unreached > 0


@pytest.mark.parametrize("miss", [1e-6, 1e-4, 0.02])
def test_a_trial_that_misses_by_a_hair_is_not_asked_for_again_and_again(miss: float) -> None:
    frontier, box = reachable_box(1, 2)

    def short(asked: FloatArray) -> FrontierPoint:
        return frontier.solved(asked - miss * box.widths)

    def feasible(asked: FloatArray) -> FrontierPoint:
        return replace(short(asked), met=asked)

    search = certified(frontier, box, tolerance=0.15)
    records, _ = drive(search, feasible)
    assert search.reason == "tolerance"
    assert len(records) < 30
    # Also where the evaluation calls it infeasible: the gap is closed short of the far ends.
    search = certified(frontier, box, tolerance=0.15)
    records, _ = drive(search, short)
    assert (questions(records) == box.high).all(axis=1).sum() == 1
    assert closest(records, box) > 5e-4
    assert len(records) < 40


def test_a_fixed_threshold_is_asked_for_in_every_trial() -> None:
    frontier, box = reachable_box(4, 3)
    middle = 0.5 * (box.low + box.high)[1]
    low, high = box.low.copy(), box.high.copy()
    low[1] = high[1] = middle
    sliced = Box(low=low, high=high, spread=frontier.std)
    search = certified(frontier, sliced, tolerance=0.1, exact=True)
    records, _ = drive(search, frontier.solved, at_once=2)
    assert search.reason == "tolerance"
    assert (questions(records)[:, 1] == middle).all()
    points = [frontier.pretrained, *(record.point for record in records if record.point)]
    places = sliced.unscaled(np.random.default_rng(0).uniform(size=(60, 3)) * sliced.free)
    excess = Bounds(points, sliced).upper(places) - frontier.least_kl(places)
    assert excess.max() <= 0.1


ALLOWED = 0.05
"""Shortfall at which a trial is feasible all the same, σ."""


def noisy(frontier: ExactFrontier, errors: tuple[float, float], seed: int) -> Trainer:
    """Trials measured with standard errors: σ of the rewards, and nats."""
    rng = np.random.default_rng(seed)

    def train(asked: FloatArray) -> FrontierPoint:
        exact = frontier.solved(asked)
        reward_errors = errors[0] * frontier.std
        rewards = exact.rewards + rng.normal(size=len(asked)) * reward_errors
        feasible = (rewards - 1.645 * reward_errors >= asked - ALLOWED * frontier.std).all()
        return FrontierPoint(
            rewards=rewards,
            kl=max(exact.kl + float(rng.normal()) * errors[1], 0.0),
            multipliers=exact.multipliers,
            reward_errors=reward_errors,
            kl_error=errors[1],
            met=asked if feasible else None,
        )

    return train


@pytest.mark.parametrize("seed", range(4))
def test_noise_widens_the_gap_and_the_bounds_hold_at_their_confidence(seed: int) -> None:
    frontier, box = reachable_box(seed, 2)
    search = certified(frontier, box, tolerance=0.25, deviations=2.0)
    records, gaps = drive(search, noisy(frontier, (0.01, 0.01), seed))
    assert search.reason == "tolerance"
    assert gaps[-1].kind == "estimated"
    points = [frontier.pretrained, *(record.point for record in records if record.point)]
    sharp, wide = Bounds(points, box), Bounds(points, box, deviations=2.0)
    places = box.unscaled(np.random.default_rng(seed).uniform(size=(100, 2)))
    eased = frontier.least_kl(places - ALLOWED * frontier.std)
    assert (wide.lower(places) <= sharp.lower(places)).all()
    assert (wide.upper(places) >= sharp.upper(places)).all()
    assert (wide.lower(places) <= frontier.least_kl(places)).mean() > 0.95
    assert (eased <= wide.upper(places)).mean() > 0.95


def test_it_stops_where_only_noise_is_left() -> None:
    frontier, box = reachable_box(1, 2)
    search = certified(frontier, box, tolerance=0.1, max_trials=60, deviations=2.0)
    records, gaps = drive(search, noisy(frontier, (0.0, 0.1), 0))
    assert search.reason == "noise"
    assert gaps[-1].gap > 0.1
    assert len(records) < 20
    # Without noise the same number of trials is not enough for so small a gap, and more are asked for.
    sharp, _ = drive(certified(frontier, box, tolerance=0.03), frontier.solved)
    assert len(sharp) > len(records)


def test_trials_with_weights_count_and_are_not_counted() -> None:
    frontier, box = reachable_box(1, 2)
    plain = certified(frontier, box, max_trials=6)
    helped = certified(frontier, box, max_trials=6)
    rng = np.random.default_rng(0)
    for _ in range(8):
        weights = rng.uniform(0, 3, 2) / frontier.std
        helped.tell(TrialRecord(thresholds=None, point=frontier.tilted(weights)))
    first, _ = drive(plain, frontier.solved)
    second, gaps = drive(helped, frontier.solved)
    assert len(first) == len(second) == 6
    assert gaps[-1].gap < plain.gap.gap
    assert gaps[-1].trials == 14


def test_before_anything_finished_the_gap_is_infinite() -> None:
    frontier, box = reachable_box(0, 2)
    search = certified(frontier, box)
    assert search.gap.gap == np.inf
    assert search.gap.unreached == pytest.approx(2.0, abs=1e-4)
    assert search.gap.trials == 0
    assert search.reason is None


def test_a_box_that_the_pretrained_model_meets_needs_no_trial() -> None:
    frontier, box = reachable_box(0, 2)
    easy = Box(low=box.low - box.widths, high=box.low)
    search = certified(frontier, easy)
    assert search.ask() is None
    assert search.reason == "tolerance"
    assert search.gap.gap == 0.0


def test_it_stops_asking_at_the_limit_while_trials_run() -> None:
    frontier, box = reachable_box(0, 2)
    search = certified(frontier, box, tolerance=1e-3, max_trials=2)
    asked = [search.ask(), search.ask()]
    assert all(thresholds is not None for thresholds in asked)
    assert search.ask() is None
    assert search.reason == "max_trials"
    search.tell(TrialRecord(thresholds=asked[1], point=None))
    assert search.reason == "max_trials"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tolerance": 0.0}, "tolerance must be above 0"),
        ({"tolerance": np.nan}, "tolerance must be above 0"),
        ({"max_trials": 0}, "at least 1"),
    ],
)
def test_options_that_mean_nothing(change: dict[str, float], message: str) -> None:
    frontier, box = reachable_box(0, 2)
    with pytest.raises(ValueError, match=message):
        certified(frontier, box, **change)  # type: ignore[arg-type]


def test_more_constraints_than_it_handles() -> None:
    box = Box(low=np.zeros(7), high=np.ones(7))
    with pytest.raises(ValueError, match="at most 6 constraints, got 7"):
        CertifiedSearch(box, FrontierPoint.pretrained(np.zeros(7)), tolerance=0.1, max_trials=5)
    with pytest.raises(ValueError, match="1 rewards, the box 2"):
        CertifiedSearch(
            Box(low=np.zeros(2), high=np.ones(2)),
            FrontierPoint.pretrained(np.zeros(1)),
            tolerance=0.1,
            max_trials=5,
        )


def undertrained(frontier: ExactFrontier, away: float) -> Callable[[FloatArray, int], TrialRecord]:
    """Trials that end so many nats from the optimum of their multipliers, half as many after two rounds, and so on."""

    def train(thresholds: FloatArray, rounds: int) -> TrialRecord:
        optimum = frontier.solved(thresholds)
        point = replace(optimum, kl=optimum.kl + away / rounds, distance=away / rounds)
        before = None if rounds == 1 else away / (rounds - 1)
        return TrialRecord(
            thresholds=thresholds, point=point, rounds=rounds, distance=away / rounds, before=before
        )

    return train


def drive_rounds(
    search: CertifiedSearch, train: Callable[[FloatArray, int], TrialRecord]
) -> dict[tuple[float, ...], TrialRecord]:
    """Run trials one at a time, each with as many rounds as the search asks for."""
    known: dict[tuple[float, ...], TrialRecord] = {}
    while (asked := search.ask()) is not None:
        before = known.get(tuple(asked.tolist()))
        known[tuple(asked.tolist())] = train(asked, 1 if before is None else before.rounds + 1)
        search.tell(known[tuple(asked.tolist())])
    return known


def test_trials_that_end_short_of_their_optimum_are_trained_further() -> None:
    frontier, box = reachable_box(1, 2)
    train = undertrained(frontier, 0.3)
    alone = certified(frontier, box, rounds=1, max_trials=30)
    records = drive_rounds(alone, train)
    assert {record.rounds for record in records.values()} == {1}
    assert alone.gap.gap > 0.2, "new thresholds leave what training leaves"
    search = certified(frontier, box, rounds=8, max_trials=120)
    records = drive_rounds(search, train)
    assert search.reason == "tolerance"
    assert 1 < max(record.rounds for record in records.values()) <= 8
    assert search.gap.trials == sum(record.rounds for record in records.values())

    # The lower bound knows of the distance: it is nowhere above the exact least KL.
    points = [frontier.pretrained, *(record.point for record in records.values() if record.point is not None)]
    places = np.random.default_rng(0).uniform(box.low, box.high, (100, 2))
    assert (Bounds(points, box).lower(places) <= frontier.least_kl(places) + 1e-6).all()

    # A driver that comes after a crash reads the last row of each trial, in any order.
    again = certified(frontier, box, rounds=8, max_trials=120)
    for record in reversed(list(records.values())):
        again.tell(record)
    assert again.reason == "tolerance"
    assert again.gap.gap == pytest.approx(search.gap.gap)
    assert again.gap.trials == search.gap.trials


def test_every_round_counts_as_a_trial() -> None:
    frontier, box = reachable_box(1, 2)
    search = certified(frontier, box, tolerance=1e-3, rounds=3, max_trials=9)
    records = drive_rounds(search, undertrained(frontier, 1.0))
    assert search.reason == "max_trials"
    assert sum(record.rounds for record in records.values()) == 9
    assert 1 < max(record.rounds for record in records.values()) <= 3


def test_rounds_that_bring_nothing_are_soon_left_alone() -> None:
    """As on a pipeline, where what is missing is not the length of training."""
    frontier, box = reachable_box(1, 2)

    def train(thresholds: FloatArray, rounds: int) -> TrialRecord:
        optimum = frontier.solved(thresholds)
        point = replace(optimum, kl=optimum.kl + 0.5, distance=0.5)
        return TrialRecord(
            thresholds=thresholds,
            point=point,
            rounds=rounds,
            distance=0.5,
            before=None if rounds == 1 else 0.5,
        )

    records = drive_rounds(certified(frontier, box, rounds=3, max_trials=16), train)
    assert sum(record.rounds - 1 for record in records.values()) <= 2


def test_what_is_not_known_to_be_short_is_never_continued() -> None:
    frontier, box = reachable_box(1, 2)
    search = certified(frontier, box, tolerance=1e-3, rounds=3, max_trials=9)
    records = drive_rounds(
        search,
        lambda asked, rounds: TrialRecord(thresholds=asked, point=frontier.solved(asked), rounds=rounds),
    )
    assert {record.rounds for record in records.values()} == {1}
