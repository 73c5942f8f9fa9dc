"""What the distance of two bounds is made of, where each part is known."""

import numpy as np
import pytest
from numpy.typing import NDArray
from support.models.drifting import Drifting

from orchestrator.frontier.paths import Gaps, PathSamples

FloatArray = NDArray[np.float64]

WORLD = Drifting(means=np.zeros((1, 1)), scales=np.ones((1, 1)))
"""P(b) = ½ b²."""


def drawn(drifts: list[float], waves: float = 0.0, count: int = 2000) -> list[PathSamples]:
    rng = np.random.default_rng(0)

    def towards(drift: float) -> object:
        return lambda state, time, _scales: drift + waves * np.sin(3 * state + 9 * time)

    return [WORLD.draw(rng, 4 * count), *(WORLD.draw(rng, count, towards(drift)) for drift in drifts)]


def test_the_parts_sum_to_the_gap() -> None:
    gaps = Gaps(drawn([0.8, 1.6], waves=0.7))
    for bound in (0.3, 0.7, 1.2):
        found = gaps.at([bound])
        assert found.few_trials + found.training + found.rest == pytest.approx(found.gap)
        assert found.proof.lower <= 0.5 * bound**2 <= found.mixed.upper


def test_between_exact_optima_only_trials_are_missing() -> None:
    found = Gaps(drawn([2.0])).at([1.0])
    # The mixture of nothing and drift 2 costs half of 2 nats; the least is half a nat.
    assert found.few_trials == pytest.approx(0.5, abs=0.06)
    assert found.training == pytest.approx(0.0, abs=0.03)
    assert found.largest == "few_trials"


def test_a_policy_that_wavers_is_short_of_its_optimum() -> None:
    sources = drawn([1.2], waves=1.0)
    reached = float(np.asarray(sources[1].rewards).mean()) - 0.1
    found = Gaps(sources).at([reached])
    paid = float(np.asarray(sources[1].path_kl).mean())
    assert found.largest == "training"
    assert found.training == pytest.approx(paid - 0.5 * (reached + 0.1) ** 2, abs=0.12)
    assert found.few_trials < 0.5 * found.training


def test_what_is_met_within_noise_only_lacks_confidence() -> None:
    sources = drawn([1.0], waves=0.5, count=60)
    found = Gaps(sources).at([float(np.asarray(sources[1].rewards).mean()) - 0.02])
    assert found.gap == np.inf
    assert np.isfinite(found.mixed.estimate)
    assert np.isfinite([found.few_trials, found.training]).all()
    assert found.largest == "rest"


def test_out_of_reach_there_are_no_parts() -> None:
    found = Gaps(drawn([1.0])).at([2.5])
    assert found.gap == np.inf
    assert found.largest is None
    assert np.isnan(found.training)
