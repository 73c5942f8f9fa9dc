"""A lower bound that holds whatever training did, held against Gaussians whose least KL is known."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from support.models.drifting import Drifting
from support.tiers import further

from orchestrator.frontier.paths import Certifier, PathSamples, certificate
from orchestrator.frontier.paths.certificate import upper_mean

FloatArray = NDArray[np.float64]

ONE_PROMPT = Drifting(means=np.zeros((1, 2)), scales=np.ones((1, 2)))
BOUND = np.array([1.0, 0.7])
OPTIMUM = BOUND
"""Multipliers, and the drift of the optimal policy, where scales are 1."""


def prompts(count: int, seed: int = 0) -> Drifting:
    rng = np.random.default_rng(seed)
    return Drifting(means=rng.normal(size=(count, 2)), scales=rng.uniform(0.5, 1.5, (count, 2)))


def undertrained(share: float, waves: float = 0.3) -> object:
    """The optimal drift, too small by a share, and wrong by waves."""

    def control(state: FloatArray, time: float, scales: FloatArray) -> FloatArray:
        return share * OPTIMUM * scales + waves * np.sin(3 * state + time)

    return control


def test_of_an_exact_optimum_the_bound_is_the_least_kl_without_noise() -> None:
    # Weights of the optimum are all Z, so that the only noise is that of the multipliers, and it is of second order.
    drawn = ONE_PROMPT.draw(np.random.default_rng(0), 400, undertrained(1.0, 0.0))
    found = certificate([drawn], BOUND)
    assert found.lower == pytest.approx(0.745, abs=0.01)
    assert found.lower <= 0.745
    assert found.kind == "95%"
    assert found.tilt == pytest.approx(OPTIMUM, abs=0.1)
    assert certificate([drawn], BOUND, confidence=0.99).kind == "99%"


def test_the_partition_function_is_bounded_from_above_at_given_multipliers() -> None:
    world = prompts(24)
    sources = [world.draw(np.random.default_rng(1), 16, undertrained(share)) for share in (0.5, 0.8)]
    tilts = np.array([[0.5, 0.3], [1.0, 0.7]])
    for tilt, found in zip(tilts, Certifier(sources).at(tilts), strict=True):
        exact = world.log_partition(tilt)
        assert exact <= found.log_partition <= exact + 0.1
        assert found.tilt == pytest.approx(tilt)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_undertrained_policies_prove_less_but_nothing_wrong(share: float) -> None:
    least = ONE_PROMPT.least(BOUND)[0]
    found = certificate([ONE_PROMPT.draw(np.random.default_rng(3), 1000, undertrained(share))], BOUND)
    assert 0.5 * least < found.lower <= least


def test_a_policy_trained_for_other_thresholds_gives_a_bound_that_is_valid_though_loose() -> None:
    def other(state: FloatArray, time: float, scales: FloatArray) -> FloatArray:
        return np.array([0.0, 1.4]) * np.ones_like(state)

    found = certificate([ONE_PROMPT.draw(np.random.default_rng(4), 1000, other)], BOUND)
    near = certificate([ONE_PROMPT.draw(np.random.default_rng(4), 1000, undertrained(0.9))], BOUND)
    assert 0.0 <= found.lower < near.lower <= 0.745


def test_samples_of_trials_carry_the_bound_further_than_those_of_the_pretrained_model() -> None:
    world = prompts(32)
    far = world.means.mean(axis=0) + np.array([2.4, 1.8])
    least, multipliers = world.least(far)
    rng = np.random.default_rng(5)

    def towards(share: float) -> object:
        return lambda state, time, scales: share * multipliers * scales + 0.3 * np.sin(3 * state + time)

    sources = [world.draw(rng, 32)]
    alone = certificate(sources, far)
    sources += [world.draw(rng, 16, towards(share)) for share in (0.35, 0.6, 0.85)]
    joined = certificate(sources, far)
    assert alone.lower < 0.9 * least < joined.lower <= least
    assert joined.shares[0] < 0.1


@pytest.mark.parametrize(("draws", "most"), [(60, 7), *further((120, 11))])
def test_coverage_is_at_least_that_which_is_stated(draws: int, most: int) -> None:
    # At most 5 % of the draws are expected to fail; more than ``most`` do so once in 100 times even at that rate.
    failed = 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        sources = [
            ONE_PROMPT.draw(rng, 200),
            *(ONE_PROMPT.draw(rng, 200, undertrained(share)) for share in (0.5, 0.75)),
        ]
        failed += certificate(sources, BOUND).lower > ONE_PROMPT.least(BOUND)[0]
    assert failed <= most


def test_multipliers_chosen_on_the_same_samples_would_overstate() -> None:
    # The same samples as both parts: what a bound without cross-fitting is.
    least = 0.08
    world = Drifting(means=np.zeros((1, 4)), scales=np.ones((1, 4)))
    bound = np.full(4, 0.2)
    honest, same = [], []
    for seed in range(30):
        rewards = np.asarray(world.draw(np.random.default_rng(seed), 60).rewards)
        tilt = np.linalg.lstsq(np.cov(rewards.T), bound - rewards.mean(axis=0), rcond=None)[0].clip(0)
        same.append(tilt @ bound - np.log(np.exp(rewards @ tilt).mean()))
        honest.append(certificate([PathSamples(rewards=rewards)], bound).estimate)
    assert np.mean(same) > least + 0.01
    assert np.mean(honest) < least


def test_without_overlap_there_is_no_bound_and_the_reason_is_told() -> None:
    drawn = ONE_PROMPT.draw(np.random.default_rng(6), 25, undertrained(0.9))
    found = certificate([drawn], BOUND)
    assert not found.carried
    assert found.lower == 0.0
    assert found.log_partition == np.inf
    assert found.reason is not None
    assert "no overlap" in found.reason


def test_heavy_tails_are_refused() -> None:
    # exp(0.9 r) of an exponential r has a Pareto tail of shape 0.9: a mean, but no variance.
    drawn = PathSamples(rewards=np.random.default_rng(7).exponential(size=(20_000, 1)))
    [light, heavy] = Certifier([drawn]).at([[0.3], [0.9]])
    assert light.carried
    assert np.log(1 / 0.7) <= light.log_partition < np.log(1 / 0.7) + 0.02
    assert not heavy.carried
    assert heavy.lower == 0.0
    assert heavy.log_partition == np.inf
    assert heavy.reason is not None
    assert "heavy tail" in heavy.reason


def test_thresholds_that_are_below_the_pretrained_model_cost_nothing() -> None:
    found = certificate([ONE_PROMPT.draw(np.random.default_rng(8), 200)], np.array([-1.0, -np.inf]))
    assert found.lower == pytest.approx(0.0, abs=1e-12)
    assert found.carried
    assert found.tilt == pytest.approx(0.0)


def test_a_free_reward_has_no_price() -> None:
    drawn = ONE_PROMPT.draw(np.random.default_rng(9), 2000)
    found = certificate([drawn], np.array([0.8, np.nan]))
    assert found.tilt[1] == 0.0
    assert 0.2 < found.lower <= 0.32


def test_samples_of_the_same_noise_fall_into_the_same_fold() -> None:
    world = prompts(6)
    sources = [world.draw(np.random.default_rng(0), 8, undertrained(share)) for share in (0.4, 0.8)]
    certifier = Certifier(sources)
    for division in certifier._divisions:
        folds: dict[tuple[int, int], set[int]] = {}
        for prompt, rank, fold in zip(certifier._pool.prompts, certifier._pool.ranks, division, strict=True):
            folds.setdefault((int(prompt), int(rank)), set()).add(int(fold))
        assert all(len(found) == 1 for found in folds.values())
        for prompt in range(6):
            assert {fold for (mine, _), found in folds.items() for fold in found if mine == prompt} == set(
                range(4)
            )


def test_the_order_of_samples_does_not_matter() -> None:
    world = prompts(5)
    drawn = world.draw(np.random.default_rng(2), 12, undertrained(0.8))
    order = np.random.default_rng(3).permutation(60)
    mixed = PathSamples(
        **{
            name: np.asarray(getattr(drawn, name))[order]
            for name in ("rewards", "log_ratio", "prompts", "units")
        }
    )
    bound = world.means.mean(axis=0) + 0.4
    assert certificate([drawn], bound).lower == pytest.approx(certificate([mixed], bound).lower, abs=1e-6)


def test_the_upper_end_of_a_skewed_mean_covers_at_its_rate() -> None:
    rng = np.random.default_rng(0)
    below = np.zeros(2)
    for _ in range(2000):
        values = rng.lognormal(sigma=1.0, size=80) / np.exp(0.5)
        shares = np.full(80, 1 / 80)
        mean, upper = upper_mean(values / 80, shares, 0.95)
        below += [upper < 1.0, mean + 1.645 * values.std() / np.sqrt(80) < 1.0]
    assert below[0] / 2000 < 0.08 < below[1] / 2000


def test_weights_that_are_far_out_have_a_mean_of_any_size() -> None:
    """Of a policy hundreds of nats away: its fourth powers are no floats."""
    values = np.random.default_rng(0).lognormal(size=80) / 80
    shares = np.full(80, 1 / 80)
    usual = upper_mean(values, shares, 0.95)
    assert upper_mean(values * 1e120, shares, 0.95) == pytest.approx((usual[0] * 1e120, usual[1] * 1e120))
    assert upper_mean(np.zeros(80), shares, 0.95) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"log_ratio": np.full(40, np.nan)}, "log_ratio must be one finite number for each of 40 samples"),
        ({"log_ratio": np.zeros(39)}, "log_ratio must be one finite number for each of 40 samples"),
        ({"units": np.zeros(40, dtype=int)}, "prompt 0 has a single independent unit"),
        ({"rewards": np.full((40, 2), np.inf)}, "must be a finite number"),
    ],
)
def test_samples_that_do_not_fit_are_refused(changed: dict[str, FloatArray], message: str) -> None:
    drawn = ONE_PROMPT.draw(np.random.default_rng(0), 40, undertrained(0.5))
    with pytest.raises(ValueError, match=message):
        certificate([replace(drawn, **changed)], BOUND)


def test_thresholds_that_do_not_fit_are_refused() -> None:
    drawn = ONE_PROMPT.draw(np.random.default_rng(0), 40)
    for bound in (np.ones(3), np.array([np.inf, 0.0])):
        with pytest.raises(ValueError, match="thresholds must be 2 numbers below infinity"):
            certificate([drawn], bound)
    with pytest.raises(ValueError, match="there are no samples"):
        certificate([], BOUND)
    with pytest.raises(ValueError, match="all sources have the same rewards"):
        certificate([drawn, PathSamples(rewards=np.ones((4, 3)))], BOUND)
