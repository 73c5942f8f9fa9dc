"""Tails of weights."""

import math

import numpy as np
import pytest
from scipy.stats import genpareto

from orchestrator.frontier.paths.tails import effective, pareto_k


@pytest.mark.parametrize("shape", [-0.2, 0.2, 0.5, 0.9])
def test_the_shape_of_a_generalised_pareto_tail_is_found(shape: float) -> None:
    found = [
        pareto_k(1.0 + np.asarray(genpareto.rvs(shape, size=4000, random_state=seed))) for seed in range(20)
    ]
    assert np.mean(found) == pytest.approx(shape, abs=0.12)


def test_exponentials_of_a_gaussian_get_heavier_with_its_variance() -> None:
    noise = np.random.default_rng(0).standard_normal(2000)
    shapes = [pareto_k(np.exp(sigma * noise)) for sigma in (0.3, 1.0, 2.0, 4.0)]
    assert shapes == sorted(shapes)
    assert shapes[1] < 0.7 < shapes[3]


def test_scale_does_not_matter() -> None:
    weights = np.exp(np.random.default_rng(0).standard_normal(500))
    assert pareto_k(weights) == pytest.approx(pareto_k(1e6 * weights), rel=1e-6)


def test_equal_weights_have_no_tail_and_few_weights_tell_none() -> None:
    assert pareto_k(np.ones(400)) == -math.inf
    assert pareto_k(np.arange(20.0)) == math.inf


def test_effective_samples() -> None:
    assert effective(np.ones(7)) == pytest.approx(7)
    assert effective(np.array([1.0, 0.0, 0.0])) == pytest.approx(1)
    assert effective(np.zeros(3)) == 0.0
