"""Point-wise KL against closed forms and quadrature, and whether its standard error tells the truth."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, kl_divergence

from trainers.config import MixtureConfig
from trainers.diffusion.feynman_kac import FeynmanKac, WeightedScore
from trainers.diffusion.langevin import AnnealedMala
from trainers.diffusion.noised import NoisedMixture, common_coordinates
from trainers.diffusion.pointwise_kl import ENERGY, POINTWISE, pointwise_kl, pointwise_weights, product_kl
from trainers.diffusion.schedule import cosine_alpha_bars

LEVELS = cosine_alpha_bars(64)
FIRST = MixtureConfig(weights=(1.0,), means=((-0.8, 0.1),), covariances=(((0.6, 0.3), (0.3, 0.8)),))
SECOND = MixtureConfig(weights=(1.0,), means=((0.8, -0.1),), covariances=(((0.4, -0.1), (-0.1, 1.1)),))
LEFT = MixtureConfig(weights=(0.4, 0.6), means=((-1.2,), (1.1,)), covariances=(((0.2,),), ((0.3,),)))
RIGHT = MixtureConfig(weights=(0.7, 0.3), means=((-0.8,), (1.3,)), covariances=(((0.4,),), ((0.2,),)))


def exact(config: MixtureConfig) -> Any:
    """The clean mixture by torch.distributions."""
    return MixtureSameFamily(
        Categorical(torch.tensor(config.weights, dtype=torch.float64)),
        MultivariateNormal(
            torch.tensor(config.means, dtype=torch.float64),
            torch.tensor(config.covariances, dtype=torch.float64),
        ),
    )


def draw(config: MixtureConfig, count: int, seed: int) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        samples: Tensor = exact(config).sample((count,))
        return samples


GRID = torch.linspace(-8, 8, 8001, dtype=torch.float64)[:, None]
CELL = float(GRID[1, 0] - GRID[0, 0])


def quadrature_kl(log_p: Tensor, log_q: Tensor) -> float:
    return float((log_p.exp() * (log_p - log_q)).sum() * CELL)


PAIRS = {
    "gaussians": (
        FIRST,
        SECOND,
        float(kl_divergence(exact(FIRST).component_distribution, exact(SECOND).component_distribution)),
    ),
    "mixtures": (LEFT, RIGHT, quadrature_kl(exact(LEFT).log_prob(GRID), exact(RIGHT).log_prob(GRID))),
}


@pytest.mark.parametrize(("p", "q", "kl"), PAIRS.values(), ids=PAIRS)
def test_within_two_percent_of_exact(p: MixtureConfig, q: MixtureConfig, kl: float) -> None:
    models = [NoisedMixture(config, alpha_bars=LEVELS) for config in (p, q)]
    estimate = pointwise_kl(models[0], models[1], draw(p, 16_000, 0), torch.Generator().manual_seed(0))
    assert estimate.estimator == POINTWISE
    assert estimate.standard_error < 0.01 * kl
    assert abs(estimate.mean - kl) < 3 * estimate.standard_error + 0.005 * kl
    assert abs(estimate.mean - kl) < 0.02 * kl
    assert models[0].evaluations == 65 * 16_000


def test_the_discretisation_is_right_without_any_sampling() -> None:
    """Gaussians: ``E_{p_t}|s_p − s_q|²`` in closed form at every level, so only the weights are in question."""
    for levels, tolerance in ((16, 0.02), (64, 0.002), (256, 2e-4)):
        alpha_bars = cosine_alpha_bars(levels)
        squares = []
        for alpha_bar in alpha_bars:
            covariances = alpha_bar * np.array([FIRST.covariances[0], SECOND.covariances[0]]) + (
                1 - alpha_bar
            ) * np.eye(2)
            shift = np.sqrt(alpha_bar) * (np.array(FIRST.means[0]) - np.array(SECOND.means[0]))
            first, second = np.linalg.inv(covariances)
            slope = second - first
            squares.append(np.trace(slope @ covariances[0] @ slope.T) + (second @ shift) @ (second @ shift))
        total = float(pointwise_weights(alpha_bars) @ np.array(squares))
        assert total == pytest.approx(PAIRS["gaussians"][2], rel=tolerance)


def test_weights_of_small_steps_are_those_of_the_chain() -> None:
    """``β / (2 (1 − β)(1 − ᾱ))`` per squared difference of noise predictions, away from the ends."""
    alpha_bars = cosine_alpha_bars(4_000)
    beta = 1 - alpha_bars[1:] / alpha_bars[:-1]
    chain = beta / (2 * (1 - beta) * (1 - alpha_bars[1:]))
    ours = pointwise_weights(alpha_bars)[1:] / (1 - alpha_bars[1:])
    np.testing.assert_allclose(ours[400:-400], chain[400:-400], rtol=0.01)


@pytest.mark.parametrize(("p", "q", "kl"), PAIRS.values(), ids=PAIRS)
def test_the_standard_error_is_honest(p: MixtureConfig, q: MixtureConfig, kl: float) -> None:
    models = [NoisedMixture(config, alpha_bars=cosine_alpha_bars(48)) for config in (p, q)]
    inside = 0
    for seed in range(60):
        estimate = pointwise_kl(models[0], models[1], draw(p, 300, seed), torch.Generator().manual_seed(seed))
        inside += abs(estimate.mean - kl) < 1.96 * estimate.standard_error
    assert 51 <= inside <= 60  # of 60, at 95 %


def product(levels: int = 64) -> tuple[list[NoisedMixture], list[float], float]:
    """The mixtures' product in common coordinates, the exact KLs to both, and log Z, by quadrature."""
    common = common_coordinates([LEFT, RIGHT])
    alpha_bars = cosine_alpha_bars(levels)
    models = [NoisedMixture(common.whiten(config), alpha_bars=alpha_bars) for config in (LEFT, RIGHT)]
    logs = [exact(common.whiten(config)).log_prob(GRID) for config in (LEFT, RIGHT)]
    log = 0.6 * logs[0] + 0.4 * logs[1]
    log_partition = float(torch.logsumexp(log, 0)) + np.log(CELL)
    return models, [quadrature_kl(log - log_partition, each) for each in logs], log_partition


WEIGHTS = np.array([0.6, 0.4])


def test_kls_of_a_product_by_energies() -> None:
    models, exact_kls, log_partition = product()
    drawn = FeynmanKac(groups=16)(models, WEIGHTS, 16_000, torch.Generator().manual_seed(0))
    alone = AnnealedMala()(models, WEIGHTS, 4_000, torch.Generator().manual_seed(0))
    for estimates in (
        product_kl(models, WEIGHTS, drawn),
        product_kl(models, WEIGHTS, drawn, log_partition=log_partition),
        product_kl(models, WEIGHTS, alone, log_partition=log_partition),
    ):
        for estimate, kl in zip(estimates, exact_kls, strict=True):
            assert estimate.estimator == ENERGY
            assert 0 < estimate.standard_error < 0.01
            assert abs(estimate.mean - kl) < 3.5 * estimate.standard_error + 0.003
    means = np.array([estimate.mean for estimate in product_kl(models, WEIGHTS, drawn)])
    assert drawn.log_partition is not None
    assert WEIGHTS @ means == pytest.approx(-drawn.log_partition[0])


def test_the_error_of_a_products_kl_is_honest() -> None:
    models, exact_kls, _ = product(levels=32)
    inside = np.zeros(2)
    for seed in range(40):
        drawn = FeynmanKac(groups=10)(models, WEIGHTS, 400, torch.Generator().manual_seed(seed))
        estimates = product_kl(models, WEIGHTS, drawn)
        inside += [
            abs(estimate.mean - kl) < 2.26 * estimate.standard_error
            for estimate, kl in zip(estimates, exact_kls, strict=True)
        ]
    assert (inside >= 34).all()  # of 40, at 95 %


def test_what_does_not_apply_is_refused() -> None:
    models, _, log_partition = product()
    generator = torch.Generator().manual_seed(0)
    samples = WeightedScore()(models, WEIGHTS, 16, generator)
    with pytest.raises(ValueError, match="sampler score does not estimate log Z"):
        product_kl(models, WEIGHTS, samples)
    with pytest.raises(ValueError, match=r"weights that sum to 1, got 1\.5"):
        product_kl(models, np.array([1.0, 0.5]), samples, log_partition=log_partition)
    coarse = NoisedMixture(LEFT, alpha_bars=cosine_alpha_bars(8))
    with pytest.raises(ValueError, match="same noise levels"):
        pointwise_kl(models[0], coarse, samples.samples, generator)
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        pointwise_kl(models[0], models[1], samples.samples[:1], generator)

    class Network(NoisedMixture):
        has_density = False

    network = Network(LEFT, alpha_bars=LEVELS)
    with pytest.raises(ValueError, match="density of every model"):
        product_kl([models[0], network], WEIGHTS, samples, log_partition=log_partition)
