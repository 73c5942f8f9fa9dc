"""The preview against exact frontiers, brute force, the primal problem, and its own stated coverage."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, minimize
from scipy.special import logsumexp
from support.models.sampled_mixtures import gaussian, random_problem
from support.tiers import exhaustive, further

from orchestrator.frontier.sampled.calibration import calibrated
from orchestrator.frontier.sampled.dual import SampledDual
from orchestrator.frontier.sampled.preview import PreviewPoint, preview, preview_within
from orchestrator.frontier.sampled.samples import Samples, pretrained_samples
from orchestrator.frontier.sampled.tilted import BEYOND, HARD, REACHABLE, TiltedSamples

STRENGTHS = (0.3, 0.7, 1.0, 1.6, 2.5)
"""Of tilts, nats per σ of both rewards: least KLs from 0.01 to 2.5 nats."""


def one(samples: Samples, *thresholds: float) -> PreviewPoint:
    return preview(samples, [thresholds])[0]


class Prompts:
    """Normal rewards of each prompt: its log partition is λ μ_c + ½ λ² s_c²."""

    def __init__(self, count: int, samples: int, rng: np.random.Generator) -> None:
        """Invent them."""
        self.means, self.stds = rng.normal(size=count), rng.uniform(0.5, 1.2, count)
        self.labels = np.repeat(np.arange(count), samples)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        noise = rng.normal(size=len(self.labels))
        return (self.means[self.labels] + self.stds[self.labels] * noise)[:, None]

    def threshold(self, tilt: float) -> float:
        return float(np.mean(self.means + tilt * self.stds**2))

    def least_kl(self, tilt: float) -> float:
        return 0.5 * tilt**2 * float(np.mean(self.stds**2))


def test_within_ten_percent_of_exact_wherever_a_hundred_samples_count() -> None:
    """Of 2,000 samples. Below 0.3 nats a relative error of 10 % is less than the noise of the mean: 0.03 nats."""
    errors, exact, calibrated_errors = [], [], []
    for seed in range(20):
        problem = random_problem(seed)
        thresholds = np.array([problem.tilted_means([strength] * 2) for strength in STRENGTHS])
        samples = pretrained_samples(problem.draw(2000, np.random.default_rng(seed)))
        known = calibrated(samples, problem.mean, problem.std)
        rows = zip(thresholds, preview(samples, thresholds), preview(known, thresholds), strict=True)
        for row, plain, sharper in rows:
            kl = problem.least_kl(row)
            if plain.ess > 100:
                exact.append(kl)
                errors.append(abs(plain.kl - kl))
            if sharper.ess > 100:
                calibrated_errors.append(abs(sharper.kl / kl - 1.0))
    assert len(errors) > 80
    assert np.mean(np.array(errors) < np.maximum(0.1 * np.array(exact), 0.03)) > 0.95
    # Where mean and standard deviation of the rewards are known, there is no exception and no floor.
    assert len(calibrated_errors) > 80
    assert max(calibrated_errors) < 0.1


def assert_covers(points: list[PreviewPoint], kl: float, tilt: list[float], widest: float = 1.35) -> None:
    """About 95 % of the intervals hold the truth, and not because they are wide."""
    count = len(points)
    least = 0.95 * count - 3.0 * math.sqrt(0.95 * 0.05 * count)
    assert sum(point.kl_low <= kl <= point.kl_high for point in points) >= least
    for index, price in enumerate(tilt):
        assert sum(p.tilt_low[index] <= price <= p.tilt_high[index] for p in points) >= least
    width = np.mean([point.kl_high - point.kl_low for point in points])
    assert width < widest * 2 * 1.96 * np.std([point.kl for point in points])


@pytest.mark.parametrize(("seed", "strength"), [(3, 0.3), (3, 1.6), *further((5, 1.0))])
def test_intervals_cover(seed: int, strength: float) -> None:
    problem = random_problem(seed)
    thresholds = problem.tilted_means([strength] * 2)
    rng = np.random.default_rng(seed)
    points = [
        one(pretrained_samples(problem.draw(600, rng), seed=index, replicates=200), *thresholds)
        for index in range(80)
    ]
    assert_covers(points, problem.least_kl(thresholds), list(strength / problem.std))


@pytest.mark.parametrize(("samples", "tilt"), [(16, 0.8), (64, 1.0)])
def test_intervals_of_prompts_cover(samples: int, tilt: float) -> None:
    rng = np.random.default_rng(samples)
    prompts = Prompts(30, samples, rng)
    points = [
        one(
            pretrained_samples(prompts.draw(rng), prompts.labels, seed=index, replicates=200),
            prompts.threshold(tilt),
        )
        for index in range(80)
    ]
    assert_covers(points, prompts.least_kl(tilt), [tilt])


def test_calibrated_intervals_cover() -> None:
    problem = random_problem(5)
    thresholds = problem.tilted_means([0.5, 0.5])
    rng = np.random.default_rng(0)
    points, plain = [], []
    for index in range(80):
        samples = pretrained_samples(problem.draw(600, rng), seed=index, replicates=200)
        plain.append(one(samples, *thresholds).kl)
        points.append(one(calibrated(samples, problem.mean), *thresholds))
    kl = problem.least_kl(thresholds)
    assert_covers(points, kl, list(0.5 / problem.std))
    assert np.std([point.kl for point in points]) < 0.5 * np.std(plain)


def test_a_tilt_for_each_prompt() -> None:
    rng = np.random.default_rng(1)
    prompts = Prompts(60, 400, rng)
    rewards = prompts.draw(rng)
    point = one(pretrained_samples(rewards, prompts.labels), prompts.threshold(1.0))
    assert point.kl == pytest.approx(prompts.least_kl(1.0), rel=0.03)
    assert point.tilt[0] == pytest.approx(1.0, rel=0.03)
    assert point.rewards[0] == pytest.approx(prompts.threshold(1.0))
    # All as one prompt: the tilt chooses prompts, which is cheaper and no policy can.
    joint = one(pretrained_samples(rewards), prompts.threshold(1.0))
    assert joint.kl < 0.6 * point.kl
    # Prompts count alike whatever their number of samples, and whatever they are called.
    keep = (prompts.labels >= 30) | (rng.random(len(rewards)) < 0.3)
    order = rng.permutation(np.flatnonzero(keep))
    uneven = one(pretrained_samples(rewards[order], 7 - 3 * prompts.labels[order]), prompts.threshold(1.0))
    assert uneven.kl == pytest.approx(prompts.least_kl(1.0), rel=0.05)


def test_the_jackknife_takes_the_bias_away() -> None:
    rng = np.random.default_rng(2)
    prompts, tilt = Prompts(40, 16, rng), 0.9
    errors = []
    for _ in range(60):
        tilted = TiltedSamples(pretrained_samples(prompts.draw(rng), prompts.labels, replicates=1))
        dual = SampledDual(tilted, np.array([prompts.threshold(tilt)]))
        row = []
        for log_partition in (tilted.plain, tilted.corrected):
            point, value, inside = dual.maximised(log_partition)
            assert inside
            row += [value - prompts.least_kl(tilt), point[0] / tilted.scale[0] - tilt]
        errors.append(row)
    kl, price, corrected_kl, corrected_price = np.mean(errors, axis=0)
    assert kl > 0.03
    assert abs(corrected_kl) < 0.3 * kl
    assert price > 0.1
    assert abs(corrected_price) < 0.3 * price


def small_samples(seed: int) -> Samples:
    """Three prompts of different sizes, some samples in pairs, weighted."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2], [6, 9, 14])
    samples = pretrained_samples(
        rng.normal(size=(29, 2)) @ np.array([[1.0, 0.4], [0.0, 2.0]]),
        labels,
        units=np.arange(29) // 2,
        replicates=20,
    )
    weights = rng.uniform(0.5, 2.0, 29)
    sums = np.bincount(labels, weights)
    masses = weights / sums[labels]
    return replace(samples, log_weights=np.log(masses), masses=masses)


def brute_force(samples: Samples, tilted: TiltedSamples, point: np.ndarray) -> float:
    """Jackknifed A_c, averaged, by leaving out one block after the other."""
    exponents = (samples.rewards - tilted.center) / tilted.scale @ point
    blocks = np.repeat(np.arange(len(samples.block_starts)), np.diff(samples.block_starts, append=29))
    values = []
    for first, last in zip(samples.prompt_starts, [*samples.prompt_starts[1:], 29], strict=True):
        inside = np.arange(first, last)

        def log_mean(kept: np.ndarray) -> float:
            logs = samples.log_weights[kept]
            return float(logsumexp(exponents[kept] + logs) - logsumexp(logs))

        present = np.unique(blocks[inside])
        left = [log_mean(inside[blocks[inside] != block]) for block in present]
        count = len(present)
        values.append(count * log_mean(inside) - (count - 1) * np.mean(left))
    return float(np.mean(values))


@given(seed=st.integers(0, 1000), point=st.tuples(st.floats(-1, 1), st.floats(-1, 1)))
@settings(max_examples=30)
def test_corrected_log_partition_by_brute_force(seed: int, point: tuple[float, float]) -> None:
    samples = small_samples(seed)
    tilted = TiltedSamples(samples)
    at = np.array(point)
    both = np.arange(2)
    here = tilted.corrected(tilted.block_sums(at, both))
    assert here.value == pytest.approx(brute_force(samples, tilted, at), abs=1e-10)
    plain = tilted.plain(tilted.block_sums(at, both))
    for index in range(2):
        step = np.zeros(2)
        step[index] = 1e-5
        sums = tilted.block_sums(at + step, both), tilted.block_sums(at - step, both)
        for evaluation, log_partition in ((here, tilted.corrected), (plain, tilted.plain)):
            high, low = (log_partition(each) for each in sums)
            assert evaluation.gradient[index] == pytest.approx((high.value - low.value) / 2e-5, abs=1e-6)
        high, low = (tilted.plain(each) for each in sums)
        assert plain.hessian[index] == pytest.approx((high.gradient - low.gradient) / 2e-5, abs=1e-6)


def test_the_plain_dual_is_the_primal() -> None:
    """Least KL over all weights of the samples that meet the thresholds on average over the prompts."""
    samples = small_samples(4)
    tilted = TiltedSamples(samples)
    thresholds = tilted.center + 0.3 * tilted.scale
    _, value, inside = SampledDual(tilted, thresholds).maximised(tilted.plain)
    labels = np.repeat([0, 1, 2], [6, 9, 14])
    found = minimize(
        lambda p: float(p @ (np.log(np.maximum(p, 1e-300)) - samples.log_weights)) / 3,
        np.exp(samples.log_weights),
        jac=lambda p: (np.log(np.maximum(p, 1e-300)) - samples.log_weights + 1.0) / 3,
        method="SLSQP",
        bounds=[(1e-15, 1.0)] * 29,
        constraints=[
            LinearConstraint(np.eye(3)[labels].T, 1.0, 1.0),
            LinearConstraint(samples.rewards.T / 3, thresholds, np.inf),
        ],
        options={"maxiter": 1000, "ftol": 1e-14},
    )
    assert inside
    assert value == pytest.approx(found.fun, abs=1e-6)


def test_verdicts_of_a_gaussian() -> None:
    samples = pretrained_samples(gaussian().draw(2000, np.random.default_rng(0)))
    easy, hard, beyond = preview(samples, [[1.0], [2.4], [4.5]])
    assert easy.verdict == REACHABLE == "reachable"
    assert hard.verdict == HARD == "hard: few samples reach it"
    assert hard.ess < 100 < easy.ess
    assert beyond.verdict == BEYOND == "beyond the samples"
    assert beyond.kl == beyond.kl_high == math.inf
    assert np.isnan(beyond.tilt_low).all()
    # What the samples prove all the same: more than a cheap threshold costs, and less than the truth.
    assert 1.0 < beyond.kl_low < 4.5**2 / 2
    assert 0.5 < beyond.tilt[0] < 2.5
    assert beyond.rewards[0] == pytest.approx(beyond.tilt[0], rel=0.15)  # of a tilted standard normal


def test_thresholds_that_exclude_each_other() -> None:
    reward = np.random.default_rng(0).normal(size=500)
    samples = pretrained_samples(np.stack([reward, -reward], axis=1))
    assert one(samples, 0.5, -0.6).verdict == REACHABLE
    assert one(samples, 0.5, -0.4).verdict == BEYOND


def test_one_sample_that_carries_a_prompt_is_beyond() -> None:
    rng = np.random.default_rng(0)
    prompts = Prompts(20, 12, rng)
    samples = pretrained_samples(prompts.draw(rng), prompts.labels)
    highest = np.mean([samples.rewards[prompts.labels == label].max() for label in range(20)])
    assert one(samples, float(highest) + 1e-3).verdict == BEYOND
    assert one(samples, prompts.threshold(0.3)).verdict == REACHABLE
    tilted = TiltedSamples(samples)
    assert tilted.verdict(np.array([20.0])) == BEYOND
    assert tilted.effective(np.array([20.0])) == pytest.approx(1.0, abs=0.7)


@pytest.mark.parametrize("value", [2.0, 0.1, 0.0, -1e6])
def test_a_constant_reward(value: float) -> None:
    rng = np.random.default_rng(0)
    samples = pretrained_samples(np.stack([rng.normal(size=300), np.full(300, value)], axis=1))
    assert one(samples, math.nan, value - 0.1).kl == 0.0
    assert one(samples, math.nan, value + 0.1).verdict == BEYOND
    assert one(samples, 0.5, value - 0.1).kl == pytest.approx(one(samples, 0.5, math.nan).kl, abs=1e-9)


def test_free_rewards() -> None:
    problem = random_problem(3)
    rewards = problem.draw(1500, np.random.default_rng(0))
    thresholds = problem.tilted_means([1.0, 1.0])
    alone = one(pretrained_samples(rewards[:, :1]), thresholds[0])
    for free in (math.nan, -math.inf):
        point = one(pretrained_samples(rewards), thresholds[0], free)
        assert point.kl == pytest.approx(alone.kl, abs=1e-10)
        assert (point.kl_low, point.kl_high) == pytest.approx((alone.kl_low, alone.kl_high), abs=1e-8)
        assert point.tilt == pytest.approx([alone.tilt[0], 0.0], abs=1e-8)
    # What becomes of the free reward is predicted as well.
    exact = problem.exact.least_kl({"linear": thresholds[0]}).rewards
    assert point.rewards == pytest.approx(list(exact.values()), abs=0.15)
    nothing = one(pretrained_samples(rewards), math.nan, math.nan)
    assert (nothing.kl, nothing.kl_low, nothing.kl_high, nothing.verdict) == (0.0, 0.0, 0.0, REACHABLE)
    assert nothing.ess == pytest.approx(1500)
    assert nothing.rewards == pytest.approx(rewards.mean(axis=0))


def test_thresholds_below_the_mean_cost_nothing() -> None:
    problem = random_problem(3)
    samples = pretrained_samples(problem.draw(1500, np.random.default_rng(0)))
    point = one(samples, *(problem.mean - 0.3 * problem.std))
    assert point.kl == point.kl_high == 0.0
    assert not point.tilt.any()


@given(
    seed=st.integers(0, 1000),
    factor=st.floats(0.01, 100),
    shift=st.floats(-50, 50),
    strength=st.floats(0.1, 1.0),
)
@settings(max_examples=20)
def test_units_order_and_scale_do_not_matter(seed: int, factor: float, shift: float, strength: float) -> None:
    rng = np.random.default_rng(seed)
    rewards = rng.normal(size=(400, 2)) @ np.array([[1.0, 0.5], [0.0, 1.0]])
    threshold = strength * np.array([1.0, 0.7])
    labels = np.arange(400) % 4
    point = one(pretrained_samples(rewards, labels, replicates=50), *threshold)
    units = np.array([factor, 1.0])
    other = one(
        pretrained_samples(rewards * units + shift, labels, replicates=50), *(threshold * units + shift)
    )
    assert other.verdict == point.verdict
    assert other.kl == pytest.approx(point.kl, abs=1e-7)
    assert (other.kl_low, other.kl_high) == pytest.approx((point.kl_low, point.kl_high), abs=1e-6)
    assert other.tilt * units == pytest.approx(point.tilt, abs=1e-5)
    order = rng.permutation(400)
    shuffled = pretrained_samples(rewards[order], labels[order], replicates=50)
    assert one(shuffled, *threshold).kl == pytest.approx(point.kl, abs=1e-8)
    scaled = preview(pretrained_samples(rewards, labels, replicates=50), [threshold], scale=[3.0, 0.2])[0]
    assert scaled.kl == pytest.approx(point.kl, abs=1e-8)
    assert scaled.tilt == pytest.approx(point.tilt, abs=1e-5)


@given(seed=st.integers(0, 1000), higher=st.floats(0.01, 0.5))
@settings(max_examples=20)
def test_higher_thresholds_cost_more_at_their_price(seed: int, higher: float) -> None:
    rewards = np.random.default_rng(seed).normal(size=(2000, 1))
    first, middle, last = preview(
        pretrained_samples(rewards, replicates=2), [[0.5], [0.5 + higher], [0.5 + 2 * higher]]
    )
    assert first.kl < middle.kl < last.kl
    assert middle.kl < 0.5 * (first.kl + last.kl)
    slope = (last.kl - first.kl) / (2 * higher)
    assert first.tilt[0] < slope < last.tilt[0]
    assert slope == pytest.approx(middle.tilt[0], rel=0.1)


def test_effective_samples_of_several_prompts() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [100, 300])
    point = one(pretrained_samples(rng.normal(size=(400, 1)), labels), math.nan)
    assert point.ess == pytest.approx(4 / (1 / 100 + 1 / 300))
    assert point.least_ess == pytest.approx(100)


def test_dependent_samples() -> None:
    rng = np.random.default_rng(0)
    half = rng.normal(size=(400, 1))
    alone = one(pretrained_samples(half), 0.8)
    # Every sample twice says no more than once, if it is said that they depend on each other.
    units = np.repeat(np.arange(400), 2)
    twice = one(pretrained_samples(np.repeat(half, 2, axis=0), units=units), 0.8)
    assert twice.kl == pytest.approx(alone.kl, abs=1e-9)
    assert (twice.kl_low, twice.kl_high) == pytest.approx((alone.kl_low, alone.kl_high), abs=1e-8)
    unsaid = one(pretrained_samples(np.repeat(half, 2, axis=0)), 0.8)
    assert unsaid.kl_high - unsaid.kl_low < 0.85 * (alone.kl_high - alone.kl_low)
    # Antithetic pairs have no noise in the mean, which is most of that of a cheap threshold.
    pairs = np.stack([half, -half], axis=1).reshape(-1, 1)
    paired = one(pretrained_samples(pairs, units=units), 0.3)
    loose = one(pretrained_samples(pairs), 0.3)
    assert paired.kl_high - paired.kl_low < 0.5 * (loose.kl_high - loose.kl_low)


def test_many_samples_in_blocks() -> None:
    rewards = gaussian().draw(50_000, np.random.default_rng(0))
    samples = pretrained_samples(rewards)
    assert len(samples.block_starts) < 5000
    point = one(samples, 1.2)
    error = math.sqrt((math.exp(1.2**2) - 1) / 50_000)
    assert (point.kl_high - point.kl_low) / 3.92 == pytest.approx(error, rel=0.15)
    assert abs(point.kl - 0.72) < 3 * error
    assert point.tilt[0] == pytest.approx(1.2, rel=0.02)


@pytest.mark.parametrize("seed", [0, *exhaustive(3, 5)])
def test_what_a_budget_buys(seed: int) -> None:
    problem = random_problem(seed)
    other = problem.tilted_means([0.0, 0.4])[1]
    rows = [[math.nan, other]] * 3 + [[-math.inf, math.nan]]
    budgets = [0.3, 1.0, 1.5, 0.7]
    samples = pretrained_samples(problem.draw(4000, np.random.default_rng(seed)))
    for budget, row, point in zip(budgets, rows, preview_within(samples, 0, budgets, rows), strict=True):
        bounds = {"quadratic": other} if np.isfinite(row[1]) else {}
        exact = problem.exact.greatest_reward("linear", budget, bounds)
        assert point.point.kl == budget
        assert point.reward == pytest.approx(exact.rewards["linear"], abs=0.1 * problem.std[0])
        assert point.point.tilt[0] == pytest.approx(1.0 / exact.kl_multiplier, rel=0.15)
        assert point.reward_low < point.reward < point.reward_high
        assert point.reward_high - point.reward_low < 0.35 * problem.std[0]
        # The way back: its threshold costs the budget.
        again = one(samples, point.reward, row[1])
        assert again.kl == pytest.approx(budget, abs=1e-6)
        assert again.tilt == pytest.approx(point.point.tilt, rel=1e-3, abs=1e-3)


def test_budgets_at_the_ends() -> None:
    problem = random_problem(3)
    samples = pretrained_samples(problem.draw(2000, np.random.default_rng(0)))
    other = problem.tilted_means([0.0, 1.5])[1]
    poor, rich = preview_within(samples, 0, [0.01, 30.0], [[math.nan, other]] * 2)
    assert poor.reward == -math.inf
    assert poor.point.kl > 0.01
    assert math.isnan(rich.reward)
    assert rich.point.verdict == BEYOND
    for budgets, row, message in (
        ([0.0], [math.nan, 0.0], "> 0"),
        ([1.0], [0.0, 0.0], "is the objective"),
        ([1.0, 1.0], [math.nan, 0.0], "one for each of 1 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            preview_within(samples, 0, budgets, [row])


def test_calibration_meets_the_moments() -> None:
    rng = np.random.default_rng(0)
    problem = random_problem(5)
    labels = np.repeat(np.arange(3), 400)
    samples = pretrained_samples(problem.draw(1200, rng), labels, replicates=50)
    known = calibrated(samples, problem.mean, problem.std)
    weights = np.exp(known.log_weights) / 3
    assert np.add.reduceat(weights, known.prompt_starts) == pytest.approx(1 / 3)
    assert weights @ known.rewards == pytest.approx(problem.mean, abs=1e-8)
    assert weights @ (known.rewards - problem.mean) ** 2 == pytest.approx(problem.std**2, rel=1e-8)
    # So do the replicates, to first order: what is left of their spread is of the second.
    means = []
    for each in (samples, known):
        drawn = each.replicates * np.exp(each.log_weights)
        sums = np.add.reduceat(drawn[:, :, None] * each.rewards, each.prompt_starts, axis=1)
        means.append((sums / np.add.reduceat(drawn, each.prompt_starts, axis=1)[:, :, None]).mean(axis=1))
    assert (np.std(means[1], axis=0) < 0.2 * np.std(means[0], axis=0)).all()
    with pytest.raises(ValueError, match="not those of samples"):
        calibrated(samples, problem.mean + 0.5 * problem.std)
    with pytest.raises(ValueError, match="one for each reward"):
        calibrated(samples, problem.mean[:1])


@pytest.mark.parametrize(
    ("rewards", "options", "message"),
    [
        ([1.0, 2.0], {}, "must be a table"),
        (np.zeros((0, 2)), {}, "must be a table"),
        ([[1.0], [math.nan]], {}, "reward 0 of sample 1 is nan"),
        ([[1.0], [2.0]], {"prompts": [1]}, "prompts must be one number for each of 2 samples"),
        ([[1.0], [2.0]], {"units": [[1, 2]]}, "units must be"),
        ([[1.0], [2.0], [3.0]], {"prompts": [4, 4, 6]}, "prompt 6 has a single independent sample"),
        ([[1.0], [2.0]], {"units": [5, 5]}, "single independent sample"),
    ],
)
def test_samples_that_do_not_fit(rewards: object, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pretrained_samples(rewards, **options)


def test_thresholds_that_do_not_fit() -> None:
    samples = pretrained_samples(np.arange(8.0).reshape(4, 2))
    for thresholds, scale, message in (
        ([1.0, 2.0], None, "must be a table"),
        ([[1.0]], None, r"\[rows, 2 rewards\]"),
        ([[1.0, math.inf]], None, "infinite"),
        ([[1.0, 1.0]], [1.0, 0.0], "scale must be 2 finite numbers > 0"),
        ([[1.0, 1.0]], [1.0], "scale must be"),
    ):
        with pytest.raises(ValueError, match=message):
            preview(samples, thresholds, scale=scale)
