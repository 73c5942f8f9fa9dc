"""An upper bound by mixing the policies that drew the samples, against Gaussians."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from support.models.drifting import Drifting

from orchestrator.frontier.paths import Certifier, Mixtures, PathSamples

FloatArray = NDArray[np.float64]

WORLD = Drifting(means=np.zeros((1, 2)), scales=np.ones((1, 2)))


def towards(drift: tuple[float, float], waves: float = 0.0) -> object:
    return lambda state, time, _scales: np.array(drift) + waves * np.sin(3 * state + time)


def drawn(seed: int, count: int = 400, waves: float = 0.3) -> list[PathSamples]:
    """The pretrained model, and three policies that reach (1, 0), (0, 1) and (1, 1)."""
    rng = np.random.default_rng(seed)
    ends = ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
    return [WORLD.draw(rng, count), *(WORLD.draw(rng, count, towards(end, waves)) for end in ends)]


def test_exact_optima_are_known_without_error() -> None:
    mixtures = Mixtures(drawn(0, waves=0.0))
    found = mixtures.at([1.0, 1.0], [1.0, 1.0])
    # The price of the corner is that of the third policy, whose log w is constant there; only reaching it is unsure.
    assert 1.0 <= mixtures.at([0.9, 0.9], [1.0, 1.0]).upper < 0.98 + 0.05
    assert found.estimate == pytest.approx(1.0, abs=0.1) or found.estimate == np.inf


def test_half_of_two_policies_costs_half_of_each() -> None:
    found = Mixtures(drawn(1, 4000, 0.0)).at([0.45, 0.45])
    assert found.estimate == pytest.approx(0.45, abs=0.03)
    assert (
        found.probabilities[[1, 2, 3]].sum() == pytest.approx(0.9, abs=0.05) or found.probabilities[3] < 0.5
    )
    assert found.estimate < found.upper < 0.55


def test_thresholds_that_no_policy_is_sure_to_reach_are_out_of_reach() -> None:
    mixtures = Mixtures(drawn(2))
    assert mixtures.at([1.5, 0.0]).upper == np.inf
    assert mixtures.at([1.5, 0.0]).estimate == np.inf
    assert np.isnan(mixtures.at([1.5, 0.0]).probabilities).all()
    assert mixtures.at([-1.0, -1.0]).upper < 0.05
    assert mixtures.at([0.5, np.nan]).upper < 0.5


def test_any_guess_of_the_prices_gives_a_bound_and_the_right_one_the_best() -> None:
    mixtures = Mixtures(drawn(3))
    right = mixtures.at([0.7, 0.7], [0.7, 0.7]).upper
    for guess in ([0.0, 0.0], [3.0, 0.2], [0.2, 3.0]):
        assert mixtures.at([0.7, 0.7], guess).upper >= right - 0.02


def test_the_noise_along_the_control_is_a_control_variate() -> None:
    sources = drawn(4)
    assert all(source.path_kl is not None for source in sources[1:])
    without = [replace(source, path_kl=None) for source in sources]
    for bound in ([0.5, 0.5], [0.8, 0.8]):
        sharp, blunt = (Mixtures(each).at(bound) for each in (sources, without))
        assert sharp.upper - sharp.estimate < 0.75 * (blunt.upper - blunt.estimate)


def test_both_bounds_hold_at_their_rate() -> None:
    failed = np.zeros(2)
    bound = np.array([0.8, 0.75])
    least = WORLD.least(bound)[0]
    for seed in range(100):
        sources = drawn(seed, 150)
        proof = Certifier(sources).certificate(bound)
        failed += [proof.lower > least, Mixtures(sources).at(bound, proof.tilt).upper < least]
    assert (failed <= 10).all()


def test_a_policy_with_a_single_unit_has_no_error() -> None:
    with pytest.raises(ValueError, match="source 1 has a single independent unit"):
        Mixtures(
            [PathSamples(rewards=np.ones((4, 1))), PathSamples(rewards=np.ones((1, 1)), log_ratio=[0.1])]
        )
