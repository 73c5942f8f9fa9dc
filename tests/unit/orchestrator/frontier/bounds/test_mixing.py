"""Mixtures of trials against brute force over the simplex, duality, simulation and quadrature."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import norm
from support.models.exact_frontiers import reachable_box
from support.tiers import exhaustive

from orchestrator.frontier.bounds.bounds import FrontierPoint
from orchestrator.frontier.bounds.mixing import OutOfReachError, pick, pick_within
from orchestrator.frontier.feasibility import joint_deviations

FloatArray = np.ndarray


def trials(seed: int, rewards: int, count: int = 4) -> list[FrontierPoint]:
    """The pretrained model and random trials: better rewards at higher KL, on the whole."""
    rng = np.random.default_rng(seed)
    points = [FrontierPoint.pretrained(np.zeros(rewards), 0.01 * np.ones(rewards))]
    for _ in range(count):
        lift = rng.uniform(-0.3, 2.0, rewards)
        points.append(
            FrontierPoint(
                rewards=lift,
                kl=float(0.4 * lift @ lift * rng.uniform(1.0, 1.6)),
                multipliers=np.maximum(lift, 0.0),
                reward_errors=rng.uniform(0.01, 0.05, rewards),
                kl_error=float(rng.uniform(0.01, 0.05)),
            )
        )
    return points


def simplex(count: int, parts: int) -> FloatArray:
    """Every vector of ``count`` multiples of 1 / parts that sum to 1."""
    bars = np.array(list(combinations(range(parts + count - 1), count - 1)))
    edges = np.column_stack([np.full(len(bars), -1), bars, np.full(len(bars), parts + count - 1)])
    return (np.diff(edges, axis=1) - 1) / parts


WEIGHTS = simplex(4, 50)


@given(seed=st.integers(0, 10_000), rewards=st.integers(1, 3), height=st.floats(0.1, 1.2))
@settings(max_examples=60)
def test_no_mixture_on_a_fine_grid_is_cheaper(seed: int, rewards: int, height: float) -> None:
    points = trials(seed, rewards, 3)
    table = np.array([point.rewards for point in points])
    kl = np.array([point.kl for point in points])
    thresholds = height * np.random.default_rng(seed).uniform(0.3, 1.0, rewards)
    meeting = (thresholds <= WEIGHTS @ table + 1e-9).all(axis=1)
    if (thresholds > table.max(axis=0)).any():
        with pytest.raises(OutOfReachError) as raised:
            pick(points, thresholds)
        assert not meeting.any()
        assert raised.value.missing is not None
        assert raised.value.missing.max() > 0
        return
    assume(meeting.any())  # else they may be reached between the grid's mixtures, or not at all
    picked = pick(points, thresholds)
    weights = np.array(picked.probabilities)
    assert weights.sum() == pytest.approx(1.0)
    assert (weights >= 1e-6).all()
    assert len(weights) <= rewards + 1
    assert picked.rewards == pytest.approx(weights @ table[list(picked.members)])
    assert picked.kl == pytest.approx(weights @ kl[list(picked.members)])
    assert (picked.rewards >= thresholds - 1e-5 * np.ptp(table, axis=0)).all()
    # Feasible grid mixtures cost no less; lowered by the grid's spacing they cost no more.
    assert picked.kl <= (WEIGHTS[meeting] @ kl).min() + 1e-9
    eased = (thresholds - np.ptp(table, axis=0) * 4 / 50 <= WEIGHTS @ table).all(axis=1)
    assert (WEIGHTS[eased] @ kl).min() <= picked.kl + kl.max() * 4 / 50
    # The dual program, in prices and without probabilities, comes to the same.
    dual = linprog(
        -np.append(thresholds, 1.0),
        A_ub=np.column_stack([table, np.ones(len(kl))]),
        b_ub=kl,
        bounds=[(0, None)] * rewards + [(None, None)],
    )
    assert dual.success
    assert picked.kl == pytest.approx(-dual.fun, abs=1e-4)


@given(seed=st.integers(0, 10_000), rewards=st.integers(1, 3), budget=st.floats(0.05, 2.0))
@settings(max_examples=60)
def test_a_budget_buys_as_much_as_any_mixture_on_a_fine_grid(seed: int, rewards: int, budget: float) -> None:
    points = trials(seed, rewards, 3)
    table = np.array([point.rewards for point in points])
    kl = np.array([point.kl for point in points])
    improve = np.random.default_rng(seed).uniform(0.5, 1.5, rewards)
    picked = pick_within(points, budget, start=np.zeros(rewards), improve=improve)
    assert picked.kl <= budget + 1e-6
    gain = float((picked.rewards / improve).min())
    affordable = WEIGHTS @ kl <= budget
    best = (WEIGHTS @ table / improve)[affordable].min(axis=1).max()
    assert best - 1e-5 <= gain <= best + (np.ptp(table, axis=0) / improve).max() * 4 / 50
    # It is the least KL for what it reaches.
    again = pick(points, picked.thresholds)
    assert again.kl == pytest.approx(picked.kl, abs=1e-6)


def square() -> list[FrontierPoint]:
    """Either reward for half a nat, both for 1.2."""
    corners = {(1.0, 0.0): 0.5, (0.0, 1.0): 0.5, (1.0, 1.0): 1.2}
    return [
        FrontierPoint.pretrained(np.zeros(2)),
        *(FrontierPoint(rewards=np.array(rewards), kl=kl) for rewards, kl in corners.items()),
    ]


def test_thresholds_and_a_budget_together() -> None:
    first = {"start": np.zeros(2), "improve": np.array([1.0, 0.0])}
    free = pick_within(square(), 0.8, **first)
    assert free.members == (1,)  # all of the first reward, and no more KL than it needs
    held = pick_within(square(), 0.8, **first, thresholds=np.array([-np.inf, 0.6]))
    # By hand: 0.5 + 0.7 w = 0.8 for the share w = 3/7 of the trial with both, 0.6 − w of the second reward alone.
    assert held.rewards == pytest.approx([0.4 + 3 / 7, 0.6], abs=1e-5)
    assert held.kl == pytest.approx(0.8, abs=1e-5)
    both = np.array([0.8, 0.6])
    with pytest.raises(OutOfReachError, match=r"need 0\.78 nats, the budget is 0\.05") as raised:
        pick_within(square(), 0.05, **first, thresholds=both)
    assert raised.value.kl == pytest.approx(pick(square(), both).kl)
    with pytest.raises(OutOfReachError, match="falls short"):
        pick_within(square(), 0.8, **first, thresholds=np.array([0.0, 1.5]))


def test_a_budget_of_nothing_is_the_pretrained_model() -> None:
    picked = pick_within(trials(0, 2), 0.0, start=np.zeros(2), improve=np.ones(2))
    assert picked.members == (0,)
    assert picked.kl == 0.0


def test_more_budget_than_the_rewards_can_use_is_not_spent() -> None:
    picked = pick_within(square(), 1e3, start=np.zeros(2), improve=np.array([1.0, 0.5]))
    assert picked.kl == pytest.approx(0.5 + 0.7 * 0.5, abs=1e-5)  # reward 1 at its end, the second half-way
    assert picked.thresholds == pytest.approx([1.0, 0.5])


def test_the_mixture_is_within_both_bounds_of_exact_problems() -> None:
    for seed in range(5):
        frontier, box = reachable_box(seed, 2)
        rng = np.random.default_rng(seed)
        points = [frontier.pretrained, frontier.solved(box.high)]
        points += [frontier.solved(box.unscaled(rng.uniform(size=2))) for _ in range(6)]
        for thresholds in box.unscaled(rng.uniform(size=(10, 2))):
            picked = pick(points, thresholds)
            least = frontier.least_kl(thresholds[None])[0]
            assert picked.lower_bound <= least + 1e-9
            assert least <= picked.kl + 1e-4
            assert picked.excess == pytest.approx(picked.kl - picked.lower_bound)


def test_the_kl_of_the_samples_is_below_the_one_stated() -> None:
    # N(0, 1) and N(1.5, 1) against N(0, 1): their mixture by quadrature.
    shift, share = 1.5, 0.4
    points = [
        FrontierPoint.pretrained(np.zeros(1)),
        FrontierPoint(rewards=np.array([shift]), kl=0.5 * shift**2, multipliers=np.array([shift])),
    ]
    picked = pick(points, np.array([share * shift]))
    assert picked.probabilities == pytest.approx((1 - share, share), abs=1e-5)
    x = np.linspace(-12, 14, 200_001)
    density = (1 - share) * norm.pdf(x) + share * norm.pdf(x, shift)
    samples = float(np.trapezoid(density * (np.log(density) - norm.logpdf(x)), x))
    assert picked.lower_bound <= samples <= picked.kl
    assert 0.5 * (share * shift) ** 2 < samples  # the tilted Gaussian is better still


def test_intervals_cover_at_their_rate() -> None:
    truth = trials(5, 2, 6)
    thresholds = np.array([0.8, 0.7])
    weights = np.zeros(len(truth))
    picked = pick(truth, thresholds)
    weights[list(picked.members)] = picked.probabilities
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(600):
        # The same mixture of trials measured anew: on the same noise, which moves all of them together.
        one, two = rng.normal(), rng.normal(size=2)
        kl = sum(w * (p.kl + one * p.kl_error) for w, p in zip(weights, truth, strict=True))
        rewards = sum(w * (p.rewards + two * p.errors) for w, p in zip(weights, truth, strict=True))
        covered.append(
            [
                picked.kl_low <= kl <= picked.kl_high,
                *(picked.rewards_low <= rewards),
                *(rewards <= picked.rewards_high),
            ]
        )
    rates = np.mean(covered, axis=0)
    assert rates[0] == pytest.approx(0.95, abs=0.03)
    assert rates[1:] == pytest.approx(np.full(4, 0.975), abs=0.025)


def test_one_trial_alone() -> None:
    points = trials(7, 2)
    thresholds = np.array([0.5, 0.5])
    alone, mixed = pick(points, thresholds, mix=False), pick(points, thresholds)
    meeting = [k for k, point in enumerate(points) if (point.rewards >= thresholds).all()]
    assert alone.members == (min(meeting, key=lambda k: points[k].kl),)
    assert alone.probabilities == (1.0,)
    assert mixed.kl < alone.kl
    budget = pick_within(points, alone.kl, start=np.zeros(2), improve=np.ones(2), mix=False)
    gains = [point.rewards.min() for point in points if point.kl <= alone.kl]
    assert len(budget.members) == 1
    assert budget.rewards.min() == pytest.approx(max(gains))


def test_standard_errors_make_it_careful() -> None:
    points = trials(7, 2)
    thresholds = np.array([0.5, 0.5])
    bold, careful = pick(points, thresholds), pick(points, thresholds, deviations=2.0)
    assert careful.kl > bold.kl
    assert careful.lower_bound < bold.lower_bound
    weights = np.array(careful.probabilities)
    lowered = [points[k].rewards - 2.0 * points[k].errors for k in careful.members]
    assert (weights @ np.array(lowered) >= thresholds - 1e-4).all()


def test_a_reward_may_be_free() -> None:
    points = trials(1, 2)
    first = pick(points, np.array([0.5, -np.inf]))
    assert first.kl <= pick(points, np.array([0.5, 0.5])).kl
    assert first.kl == pytest.approx(
        pick([FrontierPoint(rewards=p.rewards[:1], kl=p.kl) for p in points], np.array([0.5])).kl
    )
    assert np.isfinite(first.lower_bound)


def test_a_feasible_trial_holds_what_it_was_found_to_hold_and_no_more() -> None:
    # Within the tolerance of training, and yet short of what is asked.
    short = FrontierPoint(rewards=np.array([0.97, 1.2]), kl=0.8, reward_errors=np.array([0.01, 0.01]))
    feasible = replace(short, met=np.ones(2))
    dear = FrontierPoint(rewards=np.full(2, 2.0), kl=4.0)
    pretrained = FrontierPoint.pretrained(np.zeros(2))
    for deviations in (0.0, 2.0):
        picked = pick([pretrained, feasible, dear], np.ones(2), deviations=deviations)
        assert picked.kl > 0.8
        assert (picked.rewards_bound >= 1.0 - 1e-5).all()
        alone = pick([pretrained, feasible, dear], np.array([0.94, 1.0]), deviations=deviations, mix=False)
        assert alone.members == (1,)
        assert alone.rewards == pytest.approx([0.97, 1.2])  # as measured


def measured(truth: list[FrontierPoint], rng: np.random.Generator, *, together: float) -> list[FrontierPoint]:
    """The trials with errors of their standard errors, of which such a share of the variance is common to all."""
    size = len(truth[0].rewards)
    common, found = rng.normal(size=1 + size), []
    for point in truth:
        noise = np.sqrt(together) * common + np.sqrt(1.0 - together) * rng.normal(size=1 + size)
        found.append(
            replace(
                point,
                rewards=point.rewards + noise[1:] * point.errors,
                kl=max(point.kl + float(noise[0]) * point.kl_error, 0.0),
            )
        )
    return found


@pytest.mark.parametrize("mix", [True, False])
@pytest.mark.parametrize("together", [0.0, 1.0])
@pytest.mark.parametrize("asked", [1, 3, *exhaustive(2)])
def test_what_is_picked_falls_short_no_more_often_than_it_says(
    asked: int, together: float, mix: bool
) -> None:
    """Requests of random thresholds, answered from measured trials, held against their true rewards."""
    rng = np.random.default_rng(asked)
    answered = short = bold = 0
    for request in range(200):
        truth = trials(request, asked, 6)
        seen = measured(truth, rng, together=together)
        thresholds = rng.uniform(0.2, 1.2, asked)
        for deviations in (0.0, joint_deviations(asked)):
            try:
                picked = pick(seen, thresholds, deviations=deviations, mix=mix)
            except OutOfReachError:
                continue
            table = np.array([truth[k].rewards for k in picked.members])
            falls = bool((picked.probabilities @ table < thresholds - 0.001).any())
            if deviations:
                answered, short = answered + 1, short + falls
            else:
                bold += falls
    assert answered > 50
    # Three standard errors of the rate itself.
    assert short / answered <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / answered)
    if mix:
        assert bold > 0.3 * answered, "estimates fall short of what is asked half of the time"


@pytest.mark.parametrize("together", [0.0, 1.0])
def test_a_budget_is_kept_as_often_as_it_says(together: float) -> None:
    rng = np.random.default_rng(0)
    over = 0
    for request in range(300):
        truth = trials(request, 2, 6)
        seen = measured(truth, rng, together=together)
        budget = rng.uniform(0.1, 1.0)
        found = pick_within(
            seen, budget, start=seen[0].rewards, improve=np.ones(2), deviations=joint_deviations(1)
        )
        assert found.kl_bound <= budget + 2e-6
        over += sum(w * truth[k].kl for k, w in zip(found.members, found.probabilities, strict=True)) > budget
    assert over / 300 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_a_price_of_a_free_reward_is_no_bound() -> None:
    # b = (1, 1) costs 1 nat; the first alone costs ½, below the tangent that prices both at their trial.
    both = FrontierPoint(rewards=np.ones(2), kl=1.0, multipliers=np.ones(2))
    points = [FrontierPoint.pretrained(np.zeros(2)), both]
    assert pick(points, np.ones(2)).lower_bound == pytest.approx(1.0)
    assert pick(points, np.array([1.0, -np.inf])).lower_bound == 0.0


def test_what_is_out_of_reach_says_by_how_much() -> None:
    points = [
        FrontierPoint.pretrained(np.zeros(2)),
        FrontierPoint(rewards=np.array([1.0, 0.0]), kl=0.5),
        FrontierPoint(rewards=np.array([0.0, 1.0]), kl=0.5),
    ]
    with pytest.raises(OutOfReachError, match="no mixture of finished trials") as raised:
        pick(points, np.array([1.0, 0.3]))
    assert raised.value.missing is not None
    assert raised.value.missing.sum() == pytest.approx(0.3)
    with pytest.raises(OutOfReachError, match="no finished trial") as raised:
        pick(points, np.array([0.5, 0.4]), mix=False)
    assert raised.value.missing == pytest.approx([0.0, 0.4])
    assert raised.value.nearest is not None
    assert raised.value.nearest.members == (1,)


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        (np.array([np.nan, 0.0]), "must be numbers"),
        (np.array([np.inf, 0.0]), "must be numbers"),
        (np.zeros(3), "2 rewards"),
    ],
)
def test_thresholds_that_mean_nothing(thresholds: FloatArray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pick(trials(0, 2), thresholds)


@pytest.mark.parametrize(
    ("budget", "improve", "message"),
    [
        (-1.0, np.ones(2), "at least 0 nats"),
        (np.nan, np.ones(2), "at least 0 nats"),
        (1.0, np.zeros(2), "at least one reward"),
        (1.0, np.array([1.0, -1.0]), "none downwards"),
    ],
)
def test_budgets_that_mean_nothing(budget: float, improve: FloatArray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pick_within(trials(0, 2), budget, start=np.zeros(2), improve=improve)
