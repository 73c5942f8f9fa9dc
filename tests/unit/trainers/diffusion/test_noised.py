"""Noised mixtures: scores against autograd, densities against torch.distributions, and the common coordinates."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from trainers.config import MixtureConfig
from trainers.diffusion.noised import NoisedMixture, common_coordinates
from trainers.diffusion.schedule import cosine_alpha_bars

LEFT = MixtureConfig(
    weights=(0.3, 0.7),
    means=((-3.0, 1.0), (4.0, 0.5)),
    covariances=(((2.0, 0.4), (0.4, 0.5)), ((0.7, -0.2), (-0.2, 1.5))),
)
RIGHT = MixtureConfig(weights=(1.0,), means=((6.0, -2.0),), covariances=(((3.0, 1.0), (1.0, 2.0)),))
LEVELS = cosine_alpha_bars(8)


def reference(config: MixtureConfig, alpha_bar: float) -> Any:
    """The noised mixture by torch.distributions."""
    covariances = torch.tensor(config.covariances, dtype=torch.float64)
    return MixtureSameFamily(
        Categorical(torch.tensor(config.weights, dtype=torch.float64)),
        MultivariateNormal(
            alpha_bar**0.5 * torch.tensor(config.means, dtype=torch.float64),
            alpha_bar * covariances + (1 - alpha_bar) * torch.eye(config.dimension, dtype=torch.float64),
        ),
    )


@pytest.mark.parametrize("level", [0, 3, 8])
@pytest.mark.parametrize("config", [LEFT, RIGHT])
def test_densities_are_those_of_torch_and_scores_their_gradients(config: MixtureConfig, level: int) -> None:
    model = NoisedMixture(config, alpha_bars=LEVELS)
    x = 3 * torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    expected = reference(config, float(LEVELS[level])).log_prob(x)
    torch.testing.assert_close(model.log_density(level, x), expected)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(model.score(level, x), gradient)


def test_evaluations_are_counted_per_state() -> None:
    model = NoisedMixture(LEFT, alpha_bars=LEVELS, dtype=torch.float32)
    assert model.score(2, torch.zeros(7, 2)).dtype == torch.float32
    model.score(1, torch.zeros(3, 2))
    model.log_density(1, torch.zeros(3, 2))
    assert model.evaluations == 10


def test_common_coordinates_whiten_the_equal_mixture_and_keep_log_ratios() -> None:
    common = common_coordinates([LEFT, RIGHT])
    left, right = common.whiten(LEFT), common.whiten(RIGHT)
    weights = 0.5 * np.array([*left.weights, *right.weights])
    means = np.array([*left.means, *right.means])
    covariances = np.array([*left.covariances, *right.covariances])
    np.testing.assert_allclose(weights @ means, 0, atol=1e-12)
    total = np.einsum("c,cij->ij", weights, covariances + np.einsum("ci,cj->cij", means, means))
    np.testing.assert_allclose(total, np.eye(2), atol=1e-12)

    x = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = common.encode(x)
    torch.testing.assert_close(common.decode(z), x)
    before = reference(LEFT, 1.0).log_prob(x) - reference(RIGHT, 1.0).log_prob(x)
    after = reference(left, 1.0).log_prob(z) - reference(right, 1.0).log_prob(z)
    torch.testing.assert_close(before, after)


def test_constituents_of_two_dimensions_are_refused() -> None:
    line = MixtureConfig(weights=(1.0,), means=((0.0,),), covariances=(((1.0,),),))
    with pytest.raises(ValueError, match=r"must share one dimension, got \[1, 2\]"):
        common_coordinates([LEFT, line])
    with pytest.raises(ValueError, match="no constituent"):
        common_coordinates([])
