"""Samples of trials joined by the density ratios of their paths, against exact mixtures and Gaussians."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from support.models.drifting import Drifting
from support.models.sampled_mixtures import SampledProblem, gaussian, random_problem

from orchestrator.frontier.paths.sources import PathSamples
from orchestrator.frontier.sampled.preview import PreviewPoint, preview
from orchestrator.frontier.sampled.reweighting import Reweighting, settled
from orchestrator.frontier.sampled.samples import Samples, pretrained_samples
from orchestrator.frontier.sampled.tilted import BEYOND, HARD, REACHABLE

LADDER = ((1.0, 1.0), (2.0, 0.5), (2.0, 2.5), (4.5, 4.5))
"""Nats per σ."""


def predicted(
    samples: Samples | Reweighting, thresholds: Sequence[float] | NDArray[np.float64]
) -> PreviewPoint:
    row = np.asarray(thresholds, dtype=np.float64)[None]
    return settled(samples, lambda drawn: preview(drawn, row)[0], lambda point: point.tilt)


def joined(
    problem: SampledProblem, rng: np.random.Generator, tilts: Sequence[Sequence[float]], replicates: int = 100
) -> Reweighting:
    own = PathSamples(rewards=problem.draw(2000, rng), units=np.arange(2000) + 10_000)
    return Reweighting([own, *(problem.path(256, rng, tilt) for tilt in tilts)], replicates=replicates)


def test_without_trials_it_is_the_pretrained_model() -> None:
    problem = random_problem(3)
    rewards = problem.draw(600, np.random.default_rng(0))
    labels = np.arange(600) % 5
    alone = pretrained_samples(rewards, labels, seed=4)
    found = Reweighting([PathSamples(rewards=rewards, prompts=labels)], seed=4)
    weighed = found.weighed(found.shares(None))
    assert weighed.log_weights == pytest.approx(alone.log_weights)
    assert weighed.masses == pytest.approx(alone.masses)
    assert weighed.replicates == pytest.approx(alone.replicates)
    thresholds = problem.tilted_means([0.5, 0.5])
    assert predicted(found, thresholds).kl == pytest.approx(predicted(alone, thresholds).kl, abs=1e-10)


@pytest.mark.parametrize("seed", [7, 9, 13])
def test_finished_trials_extend_the_reach(seed: int) -> None:
    problem, rng = random_problem(seed), np.random.default_rng(seed)
    samples = joined(problem, rng, LADDER)
    plain = pretrained_samples(problem.draw(2000, rng), replicates=100)
    for strength in (1.0, 2.5, 4.0):
        thresholds = problem.tilted_means([strength] * 2)
        before, after = predicted(plain, thresholds), predicted(samples, thresholds)
        exact = problem.exact.least_kl(dict(zip(problem.exact.names, thresholds, strict=True)))
        assert after.verdict == REACHABLE
        assert after.kl == pytest.approx(exact.kl, rel=0.1)
        assert after.tilt == pytest.approx(list(exact.tilt.values()), rel=0.15, abs=0.35)
        assert after.kl_low < exact.kl + 0.05
        assert after.kl_high > exact.kl - 0.05
        if before.verdict == HARD:
            assert after.kl_high - after.kl_low < 0.8 * (before.kl_high - before.kl_low)


def test_beyond_the_samples_until_trials_bridge_the_gap() -> None:
    problem, rng = gaussian(), np.random.default_rng(0)
    alone = PathSamples(rewards=problem.draw(2000, rng), units=np.arange(2000) + 10_000)
    assert predicted(Reweighting([alone]), [3.6]).verdict == BEYOND
    trials = [problem.path(256, rng, [tilt]) for tilt in (3.0, 1.5, 2.4)]
    point = predicted(Reweighting([alone, *trials]), [3.6])
    assert point.verdict == REACHABLE
    assert point.kl == pytest.approx(3.6**2 / 2, rel=0.05)
    assert point.kl_low < 3.6**2 / 2 < point.kl_high


def test_a_policy_that_is_no_tilt_joins_all_the_same() -> None:
    # Drifts that waver are the optimum of no multipliers; their path weights are as exact as any.
    world = Drifting(means=np.zeros((1, 2)), scales=np.ones((1, 2)))
    rng = np.random.default_rng(1)

    def wavering(state: NDArray[np.float64], time: float, scales: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([2.0, 1.0]) + 0.5 * np.sin(3 * state + 5 * time)

    samples = Reweighting([world.draw(rng, 2000), world.draw(rng, 2000, wavering)])
    bound = np.array([2.2, 1.2])
    point = predicted(samples, bound)
    assert point.verdict == REACHABLE
    assert point.kl == pytest.approx(world.least(bound)[0], rel=0.05)
    assert point.rewards == pytest.approx(bound, abs=0.05)
    assert samples.shares(point.tilt)[1] > 0.9


def test_near_the_pretrained_model_its_own_samples_are_asked() -> None:
    problem, rng = random_problem(5), np.random.default_rng(2)
    samples = joined(problem, rng, LADDER)
    assert samples.shares(None)[0] > 0.9
    far = samples.shares(np.array(LADDER[-1]) / problem.std)
    assert far[0] < 0.05
    assert far.argmax() == len(LADDER)


def test_weights_of_a_source_have_a_mean_of_one() -> None:
    problem, rng = random_problem(5), np.random.default_rng(3)
    samples = joined(problem, rng, LADDER[:1])
    means = []
    for _ in range(50):
        samples = joined(problem, rng, LADDER[:1], replicates=1)
        means.append(float(np.exp(samples.weighed(np.array([0.0, 1.0])).log_weights).sum()))
    assert np.mean(means) == pytest.approx(1.0, abs=4 * np.std(means) / math.sqrt(50))


def test_joined_intervals_cover() -> None:
    problem, rng = random_problem(3), np.random.default_rng(4)
    thresholds = np.array([problem.tilted_means([strength] * 2) for strength in (1.5, 2.5)])
    kls = np.array([problem.least_kl(row) for row in thresholds])
    hits, found, widths = [], [], []
    for _ in range(40):
        own = PathSamples(rewards=problem.draw(600, rng), units=np.arange(600) + 1000)
        samples = Reweighting([own, *(problem.path(96, rng, tilt) for tilt in LADDER[:3])], replicates=150)
        points = [predicted(samples, row) for row in thresholds]
        hits.append([point.kl_low <= kl <= point.kl_high for point, kl in zip(points, kls, strict=True)])
        found.append([point.kl for point in points])
        widths.append([point.kl_high - point.kl_low for point in points])
    assert (np.sum(hits, axis=0) >= 0.95 * 40 - 3 * math.sqrt(0.95 * 0.05 * 40)).all()
    assert (np.mean(widths, axis=0) < 1.35 * 3.92 * np.std(found, axis=0)).all()


def test_prompts_have_their_own_partitions() -> None:
    rng = np.random.default_rng(5)
    world = Drifting(means=rng.normal(size=(48, 1)), scales=rng.uniform(0.5, 1.2, (48, 1)))

    def trial(tilt: float) -> PathSamples:
        return world.draw(rng, 4, lambda state, _time, scales: tilt * scales + 0 * state)

    sources = [world.draw(rng, 32), *map(trial, (0.5, 1.0, 0.8, 1.5, 1.2))]
    samples = Reweighting(sources, replicates=100)
    for tilt in (0.7, 1.2, 1.6):
        variance = float(np.mean(world.scales**2))
        point = predicted(samples, [float(world.means.mean()) + tilt * variance])
        assert point.kl == pytest.approx(0.5 * tilt**2 * variance, rel=0.1)
        assert point.tilt[0] == pytest.approx(tilt, rel=0.1)
        assert point.kl_low < 0.5 * tilt**2 * variance < point.kl_high


def test_a_prompt_that_no_chosen_source_has_takes_what_there_is() -> None:
    rng = np.random.default_rng(0)
    own = PathSamples(rewards=rng.normal(size=(40, 1)), prompts=np.repeat([3, 8], 20))
    trial = PathSamples(rewards=rng.normal(size=(30, 1)), log_ratio=np.zeros(30), prompts=np.full(30, 8))
    weighed = Reweighting([own, trial]).weighed(np.array([0.0, 1.0]))
    assert np.add.reduceat(weighed.masses, weighed.prompt_starts) == pytest.approx(1.0)
    assert weighed.prompts == 2
    assert weighed.count == 50


def test_a_prompt_with_a_single_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt 7 has a single independent sample"):
        Reweighting([PathSamples(rewards=np.ones((3, 1)), prompts=[2, 2, 7])])
