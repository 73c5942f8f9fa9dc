"""Multistate reweighting against its own equations, exact mixtures, and trials that are not what they claim."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from support.models.sampled_mixtures import SampledProblem, gaussian, random_problem

from orchestrator.frontier.sampled.preview import preview
from orchestrator.frontier.sampled.reweighting import (
    CONTRADICTED,
    JOINED,
    UNCHECKED,
    Check,
    TrialSamples,
    _Reweighting,
    joined_samples,
)
from orchestrator.frontier.sampled.samples import pretrained_samples
from orchestrator.frontier.sampled.tilted import HARD, REACHABLE

LADDER = ((1.0, 1.0), (2.0, 0.5), (2.0, 2.5), (4.5, 4.5))
"""Nats per σ."""


def trial(
    problem: SampledProblem,
    tilt: Sequence[float],
    rng: np.random.Generator,
    count: int = 256,
    drawn: Sequence[float] | None = None,
) -> TrialSamples:
    """A trial at a tilt in nats per σ that is drawn from it, or from another."""
    return TrialSamples(
        rewards=problem.draw(count, rng, tilt if drawn is None else drawn),
        multipliers=np.array(tilt) / problem.std,
    )


def log_weights_by_iteration(exponents: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Shirts and Chodera's equations 11, by substituting them into themselves until nothing moves."""
    offsets = np.zeros(len(numbers))
    for _ in range(200_000):
        densities = logsumexp(exponents + offsets + np.log(numbers), axis=1)
        updated = -logsumexp(exponents - densities[:, None], axis=0)
        updated -= updated[0]
        if np.abs(updated - offsets).max() < 1e-13:
            break
        offsets = updated
    logs = -logsumexp(exponents + offsets + np.log(numbers), axis=1)
    return logs - logsumexp(logs)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25)
def test_weights_solve_the_equations(seed: int) -> None:
    rng = np.random.default_rng(seed)
    states = int(rng.integers(1, 5))
    numbers = rng.integers(2, 30, states)
    tilts = np.concatenate([[0.0], rng.uniform(0, 2.5, states - 1)])
    drawn = np.repeat(np.arange(states), numbers)
    rewards = rng.normal(size=len(drawn)) + tilts[drawn]
    exponents = rewards[:, None] * tilts
    solver = _Reweighting(exponents, drawn)
    found = solver.log_weights(np.ones((1, len(drawn))))[0]
    assert found == pytest.approx(log_weights_by_iteration(exponents, numbers), abs=1e-6)
    # A replicate is the same as a table in which samples stand as often as they were drawn.
    counts = rng.multinomial(len(drawn), np.full(len(drawn), 1 / len(drawn))).astype(np.float64)
    rows = np.repeat(np.arange(len(drawn)), counts.astype(int))
    present, again = np.unique(drawn[rows], return_inverse=True)
    expected = log_weights_by_iteration(exponents[np.ix_(rows, present)], np.bincount(again))
    weighted = np.log(np.maximum(counts, 1e-300)) + solver.log_weights(counts[None])[0]
    weighted -= logsumexp(weighted)
    by_sample = np.bincount(rows, np.exp(expected), minlength=len(drawn))
    assert np.exp(weighted) == pytest.approx(by_sample, abs=1e-6)


def test_states_that_hardly_overlap() -> None:
    """One nat apart by hundreds: plain Newton leaps out, the damped one arrives."""
    rng = np.random.default_rng(0)
    tilts = np.array([0.0, 6.0, 14.0, 25.0])
    drawn = np.repeat(np.arange(4), 40)
    rewards = rng.normal(size=160) + tilts[drawn]
    solver = _Reweighting(rewards[:, None] * tilts, drawn)
    logs = solver.log_weights(np.ones((1, 160)))[0]
    offsets = -logsumexp(logs[:, None] + rewards[:, None] * tilts, axis=0)
    shares = np.exp(offsets + rewards[:, None] * tilts + np.log(40))
    shares /= shares.sum(axis=1, keepdims=True)
    assert shares.sum(axis=0) == pytest.approx(40.0, rel=1e-6)


def test_without_trials_it_is_the_pretrained_model() -> None:
    problem = random_problem(3)
    rewards = problem.draw(600, np.random.default_rng(0))
    labels = np.arange(600) % 5
    alone = pretrained_samples(rewards, labels, seed=4)
    joined, checks = joined_samples(rewards, [], labels, seed=4)
    assert checks == ()
    assert joined.log_weights == pytest.approx(alone.log_weights)
    assert joined.replicates == pytest.approx(alone.replicates)
    thresholds = problem.tilted_means([0.5, 0.5])[None]
    assert preview(joined, thresholds)[0].kl == pytest.approx(preview(alone, thresholds)[0].kl, abs=1e-10)


@pytest.mark.parametrize("seed", [7, 9, 13])
def test_finished_trials_extend_the_reach(seed: int) -> None:
    problem, rng = random_problem(seed), np.random.default_rng(seed)
    rewards = problem.draw(2000, rng)
    trials = [trial(problem, tilt, rng) for tilt in LADDER]
    joined, checks = joined_samples(rewards, trials, replicates=100)
    assert [check.standing for check in checks] == [JOINED] * 4
    thresholds = np.array([problem.tilted_means([strength] * 2) for strength in (1.0, 2.5, 4.0, 6.0)])
    plain = preview(pretrained_samples(rewards, replicates=100), thresholds)
    assert plain[-1].verdict != REACHABLE
    for row, before, after in zip(thresholds, plain, preview(joined, thresholds), strict=True):
        exact = problem.exact.least_kl(dict(zip(problem.exact.names, row, strict=True)))
        assert after.verdict == REACHABLE
        assert after.kl == pytest.approx(exact.kl, rel=0.1)
        assert after.tilt == pytest.approx(list(exact.tilt.values()), rel=0.15)
        assert after.kl_low < exact.kl + 0.05
        assert after.kl_high > exact.kl - 0.05
        if before.verdict == HARD:
            assert after.kl_high - after.kl_low < 0.8 * (before.kl_high - before.kl_low)


def test_beyond_the_samples_until_trials_bridge_the_gap() -> None:
    problem, rng = gaussian(), np.random.default_rng(0)
    rewards = problem.draw(2000, rng)
    thresholds = [[3.6]]
    assert preview(pretrained_samples(rewards), thresholds)[0].verdict == "beyond the samples"
    trials = [trial(problem, [tilt], rng) for tilt in (3.0, 1.5, 2.4)]
    point = preview(joined_samples(rewards, trials)[0], thresholds)[0]
    assert point.verdict == REACHABLE
    assert point.kl == pytest.approx(3.6**2 / 2, rel=0.05)
    assert point.kl_low < 3.6**2 / 2 < point.kl_high


def test_a_trial_that_nothing_reaches_stays_out_until_others_lead_there() -> None:
    problem, rng = gaussian(), np.random.default_rng(1)
    rewards = problem.draw(1000, rng)
    far, near = trial(problem, [2.5], rng), trial(problem, [1.5], rng, 600)
    alone, checks = joined_samples(rewards, [far])
    assert [check.standing for check in checks] == [UNCHECKED]
    assert len(alone.rewards) == 1000
    both, checks = joined_samples(rewards, [far, near])
    assert [check.standing for check in checks] == [JOINED, JOINED]
    # The order of the trials does not matter.
    swapped, _ = joined_samples(rewards, [near, far])
    tilted = [[1.0], [2.0], [3.0]]
    for first, second in zip(preview(both, tilted), preview(swapped, tilted), strict=True):
        assert first.kl == pytest.approx(second.kl, abs=1e-9)


def test_a_trial_that_did_not_reach_its_tilt_stays_out() -> None:
    problem, rng = random_problem(3), np.random.default_rng(2)
    rewards = problem.draw(2000, rng)
    honest = trial(problem, (1.0, 0.5), rng)
    short = trial(problem, (1.5, 1.5), rng, drawn=(0.9, 0.9))
    joined, checks = joined_samples(rewards, [short, honest])
    assert [check.standing for check in checks] == [CONTRADICTED, JOINED]
    assert checks[0].deviation > 3.5 > checks[1].deviation
    assert (checks[0].found < checks[0].predicted).any()
    without, _ = joined_samples(rewards, [honest])
    assert np.sort(joined.log_weights) == pytest.approx(np.sort(without.log_weights))


def test_deviations_are_standard_errors() -> None:
    problem, rng = random_problem(5), np.random.default_rng(3)
    scores = []
    for _ in range(60):
        checks = joined_samples(
            problem.draw(1000, rng), [trial(problem, (0.8, 0.5), rng, 128)], replicates=1
        )[1]
        scores.append((checks[0].found - checks[0].predicted) / checks[0].error)
    assert np.std(scores, axis=0) == pytest.approx(1.0, abs=0.3)
    assert np.mean(scores, axis=0) == pytest.approx(0.0, abs=0.45)
    check = Check(
        standing=JOINED, found=np.array([1.0, 2.0]), predicted=np.zeros(2), error=np.array([1.0, 0.5])
    )
    assert check.deviation == 4.0


def test_pairs_of_a_trial_are_not_twice_as_sure() -> None:
    problem, rng = gaussian(), np.random.default_rng(0)
    rewards, once = problem.draw(1000, rng), problem.draw(100, rng, [0.5])
    units = np.repeat(np.arange(100), 2)
    errors = [
        joined_samples(rewards, [TrialSamples(rewards=sample, multipliers=[0.5], units=unit)])[1][0].error[0]
        for sample, unit in ((once, None), (np.repeat(once, 2, axis=0), units))
    ]
    assert errors[0] == pytest.approx(errors[1])


def test_joined_intervals_cover() -> None:
    problem, rng = random_problem(3), np.random.default_rng(4)
    thresholds = np.array([problem.tilted_means([strength] * 2) for strength in (1.0, 2.5)])
    kls = np.array([problem.least_kl(row) for row in thresholds])
    hits, found, widths = [], [], []
    for index in range(60):
        trials = [trial(problem, tilt, rng, 96) for tilt in LADDER[:3]]
        joined, _ = joined_samples(problem.draw(600, rng), trials, seed=index, replicates=150)
        points = preview(joined, thresholds)
        hits.append([point.kl_low <= kl <= point.kl_high for point, kl in zip(points, kls, strict=True)])
        found.append([point.kl for point in points])
        widths.append([point.kl_high - point.kl_low for point in points])
    assert (np.sum(hits, axis=0) >= 0.95 * 60 - 3 * math.sqrt(0.95 * 0.05 * 60)).all()
    assert (np.mean(widths, axis=0) < 1.35 * 3.92 * np.std(found, axis=0)).all()


def test_prompts_have_their_own_partitions() -> None:
    """Normal rewards: a tilt moves the mean of prompt c by λ s_c². Trials have 4 samples of a prompt."""
    rng = np.random.default_rng(5)
    means, stds = rng.normal(size=48), rng.uniform(0.5, 1.2, 48)

    def draw(labels: np.ndarray, tilt: float) -> np.ndarray:
        return (means[labels] + tilt * stds[labels] ** 2 + stds[labels] * rng.normal(size=len(labels)))[
            :, None
        ]

    labels = np.repeat(np.arange(48), 32)
    trials = []
    for index, tilt in enumerate((0.5, 1.0, 0.8, 1.5, 1.2)):
        covered = np.repeat(np.arange(48)[:: 1 + (index == 1)], 4)
        trials.append(TrialSamples(rewards=draw(covered, tilt), multipliers=[tilt], prompts=10 * covered))
    joined, checks = joined_samples(draw(labels, 0.0), trials, 10 * labels, replicates=100)
    assert {check.standing for check in checks} == {JOINED}
    assert np.add.reduceat(np.exp(joined.log_weights), joined.prompt_starts) == pytest.approx(1.0)
    for tilt in (0.7, 1.2, 1.6):
        exact = 0.5 * tilt**2 * float(np.mean(stds**2))
        point = preview(joined, [[float(np.mean(means + tilt * stds**2))]])[0]
        assert point.kl == pytest.approx(exact, rel=0.1)
        assert point.tilt[0] == pytest.approx(tilt, rel=0.1)
        assert point.kl_low < exact < point.kl_high


def test_trials_that_do_not_fit() -> None:
    rewards = np.arange(8.0).reshape(4, 2)
    for sample, multipliers, prompts, message in (
        (rewards, [1.0], None, "multipliers of the shape"),
        (rewards[:, :1], [1.0, 1.0], None, "has 2 rewards, a trial 1"),
        (rewards, [1.0, -0.1], None, "finite and >= 0"),
        (rewards, [1.0, math.nan], None, "finite and >= 0"),
        (rewards, [1.0, 1.0], [0, 0, 7, 0], "prompt 7"),
    ):
        bad = TrialSamples(rewards=sample, multipliers=multipliers, prompts=prompts)
        with pytest.raises(ValueError, match=message):
            joined_samples(rewards, [bad])
