"""Samplers of products, against Gaussian products in closed form and a mixture product by quadrature."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.config import MixtureConfig
from trainers.diffusion.feynman_kac import FeynmanKac, WeightedScore, systematic_resample
from trainers.diffusion.hamiltonian import AnnealedHmc, AnnealedUha
from trainers.diffusion.langevin import AnnealedMala, AnnealedUla
from trainers.diffusion.noised import NoisedMixture, common_coordinates
from trainers.diffusion.products import ProductSampler
from trainers.diffusion.schedule import cosine_alpha_bars

COUNT = 3_000

# The bias of moments that 64 levels leave on these problems, in whitened units (see benchmarks/product_samplers.py).
CORRECTED: dict[str, tuple[ProductSampler, float]] = {
    "fkc": (FeynmanKac(), 0.01),
    "mala": (AnnealedMala(), 0.02),
    "mala, line": (AnnealedMala(use_density=False), 0.05),
    "hmc": (AnnealedHmc(), 0.02),
    "hmc, line": (AnnealedHmc(use_density=False), 0.03),
    "uha": (AnnealedUha(), 0.03),
    "hmc, unadjusted": (AnnealedHmc(metropolis=False), 0.05),
    "ula": (AnnealedUla(), 0.06),
}


@dataclass(frozen=True)
class Problem:
    """A product whose answer is known."""

    models: list[NoisedMixture]
    weights: np.ndarray
    log_partition: float
    mean: Tensor
    covariance: Tensor


def gaussian(mean: list[float], covariance: list[list[float]]) -> MixtureConfig:
    return MixtureConfig(
        weights=(1.0,), means=(tuple(mean),), covariances=(tuple(tuple(row) for row in covariance),)
    )


def noised(configs: list[MixtureConfig], levels: int = 64) -> list[NoisedMixture]:
    common = common_coordinates(configs)
    return [NoisedMixture(common.whiten(c), alpha_bars=cosine_alpha_bars(levels)) for c in configs]


def gaussian_problem(configs: list[MixtureConfig], weights: list[float]) -> Problem:
    """``Π N(m_i, S_i)^{λ_i}``, unnormalised, in closed form."""
    common = common_coordinates(configs)
    white = [common.whiten(config) for config in configs]
    means = np.array([config.means[0] for config in white])
    covariances = np.array([config.covariances[0] for config in white])
    values, dimension = np.array(weights), means.shape[1]
    each = np.linalg.inv(covariances)
    precision = np.einsum("m,mij->ij", values, each)
    pull = np.einsum("m,mij,mj->i", values, each, means)
    mean = np.linalg.solve(precision, pull)
    squares = np.einsum("mi,mij,mj->m", means, each, means)
    log_partition = 0.5 * (
        dimension * np.log(2 * np.pi) * (1 - values.sum())
        + values @ (np.linalg.slogdet(each)[1] - squares)
        - np.linalg.slogdet(precision)[1]
        + pull @ mean
    )
    return Problem(
        noised(configs),
        values,
        float(log_partition),
        torch.tensor(mean),
        torch.tensor(np.linalg.inv(precision)),
    )


THREE = [
    gaussian([-1, 0], [[1.0, 0.6], [0.6, 0.8]]),
    gaussian([1, 0.5], [[0.3, -0.1], [-0.1, 1.2]]),
    gaussian([1.2, 0.4], [[0.3, -0.1], [-0.1, 1.0]]),
]
LEFT = MixtureConfig(weights=(0.4, 0.6), means=((-1.5,), (1.5,)), covariances=(((0.2,),), ((0.4,),)))
RIGHT = MixtureConfig(weights=(0.7, 0.3), means=((-1.0,), (2.0,)), covariances=(((0.5,),), ((0.3,),)))


def mixture_problem(configs: list[MixtureConfig], weights: list[float]) -> Problem:
    """A product of 1-D mixtures by quadrature."""
    models = noised(configs)
    grid = torch.linspace(-8, 8, 8001, dtype=torch.float64)[:, None]
    step = float(grid[1, 0] - grid[0, 0])
    common = common_coordinates(configs)
    clean = [NoisedMixture(common.whiten(c), alpha_bars=np.array([1.0])) for c in configs]
    log = sum(w * model.log_density(0, grid) for w, model in zip(weights, clean, strict=True))
    assert isinstance(log, Tensor)
    log_partition = float(torch.logsumexp(log, 0)) + np.log(step)
    shares = torch.exp(log - log_partition) * step
    mean = shares @ grid
    return Problem(models, np.array(weights), log_partition, mean, (shares @ (grid - mean).square())[:, None])


PROBLEMS = {
    "gaussians": gaussian_problem(THREE, [0.5, 0.25, 0.25]),
    "mixtures": mixture_problem([LEFT, RIGHT], [0.5, 0.5]),
}


def moments(drawn: Any) -> tuple[Tensor, Tensor]:
    weights = drawn.weights
    mean = weights @ drawn.samples
    offset = drawn.samples - mean
    return mean, (offset * weights[:, None]).T @ offset


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize("name", CORRECTED)
def test_moments_are_within_the_stated_error(name: str, problem: Problem) -> None:
    sampler, bias = CORRECTED[name]
    drawn = sampler(problem.models, problem.weights, COUNT, torch.Generator().manual_seed(0))
    mean, covariance = moments(drawn)
    deviation = problem.covariance.diagonal().sqrt()
    noise = 4 / drawn.effective_samples**0.5
    assert ((mean - problem.mean).abs() < bias + noise * deviation).all()
    assert (
        (covariance - problem.covariance).abs() < bias + 1.5 * noise * torch.outer(deviation, deviation)
    ).all()

    assert drawn.samples.shape == (COUNT, problem.models[0].dimension)
    torch.testing.assert_close(drawn.weights.sum(), torch.tensor(1.0, dtype=torch.float64))
    if drawn.acceptance is not None:
        assert drawn.acceptance.shape == (COUNT,)
        assert ((drawn.acceptance > 0) & (drawn.acceptance <= 1)).all()
        assert float(drawn.acceptance.mean()) > 0.7
    assert (drawn.acceptance is not None) == (name in {"mala", "mala, line", "hmc", "hmc, line"})


def test_the_uncorrected_score_is_visibly_off() -> None:
    """On the same problems, against what the worst corrected sampler is allowed."""
    problem = PROBLEMS["gaussians"]
    drawn = WeightedScore()(problem.models, problem.weights, COUNT, torch.Generator().manual_seed(0))
    mean, _ = moments(drawn)
    error = (problem.covariance.diagonal() / COUNT).sqrt()
    assert ((mean - problem.mean).abs() / error > 15).all()
    assert float((mean - problem.mean).abs().max()) > 0.25

    problem = PROBLEMS["mixtures"]
    drawn = WeightedScore()(problem.models, problem.weights, 20_000, torch.Generator().manual_seed(0))
    squares = (drawn.samples - problem.mean).square()
    assert float(problem.covariance - squares.mean()) > 5 * float(squares.std()) / 20_000**0.5


ALL = {"score": WeightedScore(), **{name: sampler for name, (sampler, _) in CORRECTED.items()}}


@pytest.mark.parametrize("name", ALL)
def test_one_model_alone_is_that_model(name: str) -> None:
    """The second constituent has weight 0: it is never even evaluated."""
    problem = mixture_problem([LEFT, RIGHT], [1.0, 0.0])
    drawn = ALL[name](problem.models, problem.weights, COUNT, torch.Generator().manual_seed(1))
    mean, covariance = moments(drawn)
    deviation = float(problem.covariance) ** 0.5
    assert float((mean - problem.mean).abs()) < 0.02 + 4 * deviation / COUNT**0.5
    assert float((covariance - problem.covariance).abs()) < 0.02 + 6 * deviation**2 / COUNT**0.5
    assert problem.models[1].evaluations == 0
    assert problem.models[0].evaluations == drawn.evaluations * COUNT
    if drawn.log_partition is not None:
        assert drawn.log_partition == pytest.approx((0.0, 0.0), abs=1e-9)
        assert drawn.effective_samples == pytest.approx(COUNT)


@pytest.mark.parametrize("weights", [[0.5, 0.25, 0.25], [0.8, 0.1, 0.1], [0.6, 0.4, 0.3], [0.3, 0.2, 0.1]])
def test_log_partition_of_gaussians(weights: list[float]) -> None:
    """The last two do not sum to 1: tempered products, which the particles know how to weigh."""
    problem = gaussian_problem(THREE, weights)
    drawn = FeynmanKac(groups=16)(problem.models, problem.weights, 8_000, torch.Generator().manual_seed(3))
    assert drawn.log_partition is not None
    value, error = drawn.log_partition
    assert 0 < error < 0.03
    assert abs(value - problem.log_partition) < 3.5 * error + 1e-3
    mean, covariance = moments(drawn)
    torch.testing.assert_close(mean, problem.mean, atol=0.06, rtol=0)
    torch.testing.assert_close(covariance, problem.covariance, atol=0.08, rtol=0)


def test_the_standard_error_of_log_partition_is_honest() -> None:
    problem = PROBLEMS["gaussians"]
    few = [
        NoisedMixture(common_coordinates(THREE).whiten(config), alpha_bars=cosine_alpha_bars(24))
        for config in THREE
    ]
    inside = 0
    for seed in range(40):
        drawn = FeynmanKac(groups=10)(few, problem.weights, 400, torch.Generator().manual_seed(seed))
        assert drawn.log_partition is not None
        inside += abs(drawn.log_partition[0] - problem.log_partition) < 2.26 * drawn.log_partition[1]
    assert inside >= 34  # of 40, at 95 %


def test_many_dimensions_take_isotropic_steps() -> None:
    """Forty coordinates, constituents of equal and of unequal isotropic variances: closed form."""
    alpha_bars = cosine_alpha_bars(64)
    configs = [
        gaussian([shift] * 40, (variance * np.eye(40)).tolist())
        for shift, variance in ((0.05, 0.8), (-0.05, 1.2))
    ]
    models = [NoisedMixture(config, alpha_bars=alpha_bars) for config in configs]
    precision = 0.5 / 0.8 + 0.5 / 1.2
    mean = 0.5 * (0.05 / 0.8 - 0.05 / 1.2) / precision
    each = (
        -0.25 * np.log(0.8 * 1.2)
        - 0.5 * np.log(precision)
        - 0.5 * (0.5 * 0.05**2 * (1 / 0.8 + 1 / 1.2) - precision * mean**2)
    )
    drawn = FeynmanKac()(models, np.array([0.5, 0.5]), 800, torch.Generator().manual_seed(0))
    assert drawn.log_partition is not None
    assert abs(drawn.log_partition[0] - 40 * each) < 4 * drawn.log_partition[1] + 0.01
    shares = drawn.weights
    assert float((shares @ drawn.samples).mean()) == pytest.approx(mean, abs=0.02)
    assert float((shares @ (drawn.samples - mean).square()).mean()) == pytest.approx(1 / precision, abs=0.02)


class ScoresOnly:
    """A network: scores, but no density."""

    has_density = False

    def __init__(self, model: NoisedMixture) -> None:
        """Hide the density of a mixture."""
        self.alpha_bars, self.dimension, self.dtype = model.alpha_bars, model.dimension, model.dtype
        self.score = model.score

    def log_density(self, level: int, x: Tensor) -> Tensor:
        raise AssertionError(level)


@pytest.mark.parametrize("sampler", [AnnealedMala, AnnealedHmc])
def test_without_densities_the_line_integral_decides(sampler: Any) -> None:
    """It is exact for Gaussians: at equal steps the chains are the same to the last decision."""
    problem = PROBLEMS["gaussians"]
    networks = [ScoresOnly(model) for model in problem.models]
    drawn = [
        sampler(step=0.3, line_step=0.3)(models, problem.weights, 200, torch.Generator().manual_seed(0))
        for models in (networks, problem.models)
    ]
    torch.testing.assert_close(drawn[0].samples, drawn[1].samples)
    torch.testing.assert_close(drawn[0].acceptance, drawn[1].acceptance)


@pytest.mark.parametrize("count", [1, 3, 40])
def test_few_samples_are_samples(count: int) -> None:
    """Too few to estimate a covariance from: all samples of many small batches together are still the product's."""
    problem = PROBLEMS["gaussians"]
    sampler = FeynmanKac(groups=1) if count > 1 else AnnealedHmc()
    generator = torch.Generator().manual_seed(0)
    batches = [sampler(problem.models, problem.weights, count, generator) for _ in range(20)]
    mean = torch.stack([batch.weights @ batch.samples for batch in batches]).mean(dim=0)
    assert float(((mean - problem.mean) / problem.covariance.diagonal().sqrt()).abs().max()) < 0.9
    assert max(float(batch.samples.abs().max()) for batch in batches) < 6


def test_resampling_is_unbiased_and_spreads_evenly() -> None:
    logs = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).expand(20_000, 7)
    kept = systematic_resample(logs, torch.Generator().manual_seed(1))
    counts = torch.nn.functional.one_hot(kept, 7).sum(dim=1).double()
    expected = 7 * torch.softmax(logs[0], dim=0)
    error = counts.std(dim=0) / 20_000**0.5
    assert ((counts.mean(dim=0) - expected).abs() <= 4 * error + 1e-9).all()
    assert ((counts - expected).abs() < 1).all()


def test_a_seed_repeats_and_weights_are_checked() -> None:
    models = PROBLEMS["mixtures"].models
    first, again = (
        FeynmanKac()(models, np.array([0.3, 0.7]), 80, torch.Generator().manual_seed(5)) for _ in range(2)
    )
    torch.testing.assert_close(first.samples, again.samples, rtol=0, atol=0)
    generator = torch.Generator()
    for weights in ([0.5, -0.5], [0.0, 0.0], [float("nan"), 1.0]):
        with pytest.raises(ValueError, match="weights must be finite, >= 0 and not all 0"):
            AnnealedUla()(models, np.array(weights), 8, generator)
    with pytest.raises(ValueError, match="one weight per model"):
        AnnealedUla()(models, np.array([1.0]), 8, generator)
    with pytest.raises(ValueError, match="must sum to 1"):
        WeightedScore()(models, np.array([1.0, 1.0]), 8, generator)
    with pytest.raises(ValueError, match="multiple of groups"):
        FeynmanKac()(models, np.array([0.5, 0.5]), 81, generator)
    with pytest.raises(ValueError, match="must share levels"):
        FeynmanKac()([models[0], noised([LEFT, RIGHT], levels=10)[1]], np.array([0.5, 0.5]), 80, generator)
