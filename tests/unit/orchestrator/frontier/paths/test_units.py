"""Means with controls, against the covariance that they have over many repetitions."""

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.frontier.paths import Mixtures, PathSamples
from orchestrator.frontier.paths.units import UnitTable

FloatArray = NDArray[np.float64]

PROMPTS, EACH, MORE = 4, 25, 75


def table(
    values: FloatArray, noise: FloatArray, each: int, first: int = 0, whole: int = EACH + MORE
) -> UnitTable:
    prompts = np.repeat(np.arange(PROMPTS), each)
    units = prompts * whole + first + np.tile(np.arange(each), PROMPTS)
    return UnitTable(values=values, noise=noise, prompts=prompts, units=units)


def drawn(rng: np.random.Generator, paired: bool) -> tuple[UnitTable, UnitTable]:
    """A policy whose reward is the pretrained model's on the same noise, with an error of variance 0.1, and 1 more."""
    own = rng.normal(size=PROMPTS * (EACH + MORE))
    same = own.reshape(PROMPTS, -1)[:, :EACH].ravel() if paired else rng.normal(size=PROMPTS * EACH)
    reward = 1.0 + same + np.sqrt(0.1) * rng.normal(size=len(same))
    nothing = np.zeros(len(same))
    pretrained = table(np.column_stack([own, np.zeros(len(own))]), np.zeros(len(own)), EACH + MORE)
    return table(np.column_stack([reward, nothing]), nothing, EACH), pretrained


@pytest.mark.parametrize(("paired", "variance"), [(True, 0.011 - 0.01**2 / (0.01 + 1 / 300)), (False, 0.011)])
def test_the_same_noise_of_the_pretrained_model_takes_its_share_of_the_error(
    paired: bool, variance: float
) -> None:
    found = [
        policy.means(own) for policy, own in (drawn(np.random.default_rng(s), paired) for s in range(2000))
    ]
    means = np.array([mean[0] for mean, _, _ in found])
    assert means.mean() == pytest.approx(1.0, abs=4 * np.sqrt(variance / 2000))
    assert means.var() == pytest.approx(variance, rel=0.13)  # its own error is 3 %
    assert np.mean([spread[0, 0] for _, spread, _ in found]) == pytest.approx(variance, rel=0.06)


def test_without_other_samples_of_the_pretrained_model_nothing_more_is_known() -> None:
    policy, own = drawn(np.random.default_rng(0), True)
    rows = np.isin(own.units, policy.units)
    same = UnitTable(
        values=own.values[rows], noise=own.noise[rows], prompts=own.prompts[rows], units=own.units[rows]
    )
    for known in (same, None):
        mean, spread, _ = policy.means(known)
        assert mean == pytest.approx(policy.values.mean(axis=0))
        assert spread[0, 0] == pytest.approx(policy.values[:, 0].var() / (PROMPTS * EACH), rel=0.1)


def test_samples_of_other_noise_are_no_controls() -> None:
    policy, own = drawn(np.random.default_rng(0), True)
    other = UnitTable(
        values=own.values, noise=own.noise, prompts=own.prompts, units=own.units + 10 * len(own.units)
    )
    assert policy.means(other)[1] == pytest.approx(policy.means(None)[1])


def test_a_mixture_is_surer_by_the_same_noise() -> None:
    """Reward r = the end of a path of one step; the policy moves it by 1, at ½ nat, and Σ u·ε is not told."""
    noise = np.random.default_rng(1).normal(size=4000)
    own = PathSamples(rewards=noise[:, None], units=np.arange(4000))
    ends = 1.0 + noise[:400]
    excess = []
    for units in (np.arange(400), np.arange(5000, 5400)):
        policy = PathSamples(rewards=ends[:, None], log_ratio=ends - 0.5, units=units)
        mixed = Mixtures([own, policy]).at([0.9])
        excess.append(mixed.upper - mixed.estimate)
    assert 0.0 < excess[0] < 0.5 * excess[1]
