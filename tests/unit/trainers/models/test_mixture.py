"""The mixture as a diffusion model: its denoiser, its score, its sampler, its noise."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiers import further
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from trainers.config import MixtureConfig
from trainers.models.mixture import ControlNetwork, MixtureModel, antithetic_noise
from trainers.models.mixture_policy import MixturePolicy

ONE = MixtureConfig(weights=(0.3, 0.7), means=((-2.0,), (1.0,)), covariances=(((0.5,),), ((0.1,),)))
TWO = MixtureConfig(
    weights=(0.5, 0.2, 0.3),
    means=((-1.0, 0.0), (1.5, 0.5), (0.0, -2.0)),
    covariances=(((0.3, 0.1), (0.1, 0.2)), ((0.4, -0.1), (-0.1, 0.2)), ((0.05, 0.0), (0.0, 0.6))),
)
GAUSSIAN = MixtureConfig(weights=(1.0,), means=((3.0, -1.0),), covariances=(((4.0, 1.0), (1.0, 0.5)),))


def model_of(config: MixtureConfig, steps: int = 16, eta: float = 1.0) -> MixtureModel:
    return MixtureModel(config, steps=steps, eta=eta, dtype=torch.float64)


def reference_samples(model: MixtureModel, count: int) -> np.ndarray:
    policy = MixturePolicy(model, ControlNetwork(model, 4))
    return policy.rollout(policy.draw(count, 0), reference=True).samples.double().numpy()


def density(config: MixtureConfig) -> MixtureSameFamily:
    as_tensor = lambda values: torch.tensor(values, dtype=torch.float64)  # noqa: E731 - one line, used three times
    return MixtureSameFamily(
        Categorical(as_tensor(config.weights)),
        MultivariateNormal(as_tensor(config.means), as_tensor(config.covariances)),
    )


def moments(config: MixtureConfig) -> tuple[np.ndarray, np.ndarray]:
    weights, means = np.array(config.weights), np.array(config.means)
    mean = weights @ means
    spread = means - mean
    return mean, np.einsum("c,cij->ij", weights, np.array(config.covariances)) + (spread.T * weights) @ spread


def white(config: MixtureConfig, samples: np.ndarray) -> np.ndarray:
    """Coordinates of zero mean and unit covariance."""
    mean, covariance = moments(config)
    return (samples - mean) @ np.linalg.inv(np.linalg.cholesky(covariance)).T


@pytest.mark.parametrize(("config", "points"), [(ONE, 8001), (TWO, 401)])
@pytest.mark.parametrize("step", [0, 5, 12])
def test_denoise_is_the_posterior_mean(config: MixtureConfig, points: int, step: int) -> None:
    """``E[z_0 | z_t]`` by quadrature over ``x_0`` with torch's mixture density; nothing shared with the model."""
    model = model_of(config)
    mean, covariance = moments(config)
    reach = 7 * np.sqrt(np.diag(covariance))
    axes = [np.linspace(m - r, m + r, points) for m, r in zip(mean, reach, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, config.dimension)
    prior = density(config).log_prob(torch.tensor(grid)).numpy()
    clean = white(config, grid)
    alpha_bar = model.table.levels.alpha[step] ** 2
    states = np.random.default_rng(step).normal(size=(5, config.dimension))
    for state, guess in zip(states, model.denoise(step, torch.tensor(states)).numpy(), strict=True):
        log_weight = prior - 0.5 * ((state - np.sqrt(alpha_bar) * clean) ** 2).sum(axis=1) / (1 - alpha_bar)
        weight = np.exp(log_weight - log_weight.max())
        np.testing.assert_allclose(guess, weight @ clean / weight.sum(), atol=2e-4)


@pytest.mark.parametrize("config", [ONE, TWO])
def test_denoise_gives_the_score_of_the_noised_density(config: MixtureConfig) -> None:
    """Tweedie: ``∇ log p_t(z) = (√ᾱ E[z_0|z] − z) / (1 − ᾱ)``, with the gradient by autograd."""
    model = model_of(config)
    _, covariance = moments(config)
    inverse = np.linalg.inv(np.linalg.cholesky(covariance))
    centers = torch.tensor(white(config, np.array(config.means)))
    spreads = torch.tensor(inverse @ np.array(config.covariances) @ inverse.T)
    for step in (0, 7, 15):
        alpha_bar = model.table.levels.alpha[step] ** 2
        noised = MixtureSameFamily(
            Categorical(torch.tensor(config.weights, dtype=torch.float64)),
            MultivariateNormal(
                np.sqrt(alpha_bar) * centers,
                alpha_bar * spreads + (1 - alpha_bar) * torch.eye(config.dimension, dtype=torch.float64),
            ),
        )
        states = torch.randn(6, config.dimension, dtype=torch.float64).requires_grad_()
        (score,) = torch.autograd.grad(noised.log_prob(states).sum(), states)
        tweedie = (np.sqrt(alpha_bar) * model.denoise(step, states) - states) / (1 - alpha_bar)
        torch.testing.assert_close(tweedie.detach(), score, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("steps", "eta"), [(4, 1.0), (32, 0.5), *further((32, 1.0))])
def test_a_gaussians_sampler_ends_in_that_gaussian(steps: int, eta: float) -> None:
    """However coarse: the analytic step variance keeps a Gaussian's covariance."""
    count = 200_000
    model = MixtureModel(GAUSSIAN, steps=steps, eta=eta)
    samples = reference_samples(model, count)
    mean, covariance = moments(GAUSSIAN)
    np.testing.assert_allclose(
        samples.mean(axis=0), mean, atol=1e-3
    )  # antithetic pairs: exact but for float32
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    np.testing.assert_allclose((np.cov(samples.T) - covariance) / scale, 0.0, atol=0.03)


@pytest.mark.parametrize("config", [ONE, TWO])
def test_a_mixtures_sampler_has_the_mixtures_moments(config: MixtureConfig) -> None:
    model = MixtureModel(config, steps=64, eta=1.0)
    samples = reference_samples(model, 50_000)
    mean, covariance = moments(config)
    deviation = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((samples.mean(axis=0) - mean) / deviation, 0.0, atol=0.03)
    np.testing.assert_allclose(
        np.cov(samples.T) / np.outer(deviation, deviation),
        covariance / np.outer(deviation, deviation),
        atol=0.05,
    )
    # And its modes: the share of each component, told apart by the nearest mean in that component's metric.
    exact = density(config).sample((200_000,)).numpy()

    def shares(points: np.ndarray) -> np.ndarray:
        distance = ((points[:, None] - np.array(config.means)) ** 2).sum(axis=2)
        return np.bincount(distance.argmin(axis=1), minlength=len(config.means)) / len(points)

    np.testing.assert_allclose(shares(samples), shares(exact), atol=0.02)


def test_an_affine_map_of_the_problem_changes_nothing() -> None:
    """Scaled, sheared and shifted data: the same KL, and the same samples under the map.

    The map is lower triangular, as Cholesky factors are; under any other the whitened states turn as well.
    """
    matrix, shift = np.array([[20.0, 0.0], [5.0, 0.1]]), np.array([100.0, -7.0])
    mapped = MixtureConfig(
        weights=TWO.weights,
        means=tuple(tuple(m) for m in (np.array(TWO.means) @ matrix.T + shift).tolist()),
        covariances=tuple(
            tuple(tuple(row) for row in c) for c in (matrix @ np.array(TWO.covariances) @ matrix.T).tolist()
        ),
    )
    original, moved = model_of(TWO), model_of(mapped)
    torch.manual_seed(0)
    network = ControlNetwork(original, 8)
    torch.nn.init.normal_(network.leave.weight, std=0.5)
    draw = MixturePolicy(original, network).draw(256, 0)
    with torch.no_grad():
        before, after = (MixturePolicy(m, network).rollout(draw) for m in (original, moved))
    expected = before.samples @ torch.tensor(matrix).T + torch.tensor(shift)
    torch.testing.assert_close(after.samples, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(after.path_kl, before.path_kl, rtol=1e-5, atol=1e-5)


def test_the_noise_is_antithetic() -> None:
    model = model_of(TWO)
    noise = antithetic_noise(model, 10, seed=3)
    assert noise.shape == (17, 10, 2)
    assert (noise[:, 0::2] + noise[:, 1::2]).abs().max() == 0
    assert antithetic_noise(model, 7, seed=3).shape == (17, 7, 2)
    assert not torch.equal(noise, antithetic_noise(model, 10, seed=4))


@settings(max_examples=30)
@given(per_worker=st.integers(1, 6), workers=st.integers(1, 5), seed=st.integers(0, 2**62))
def test_the_slices_of_all_workers_make_up_the_whole(per_worker: int, workers: int, seed: int) -> None:
    model = model_of(ONE, steps=3)
    count = per_worker * workers
    slices = [
        antithetic_noise(model, count, seed, first=rank * per_worker, last=(rank + 1) * per_worker)
        for rank in range(workers)
    ]
    assert torch.equal(torch.cat(slices, dim=1), antithetic_noise(model, count, seed))


def test_no_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="path-wise KL is infinite"):
        model_of(ONE, eta=0.0)


def test_the_network_gives_the_same_controls_step_by_step_and_at_once() -> None:
    model = model_of(TWO)
    network = ControlNetwork(model, 8)
    torch.nn.init.normal_(network.leave.weight)
    inputs, conditioning = torch.randn(16, 5, 4, dtype=torch.float64), network.conditioning()
    at_once = network(inputs, conditioning)
    one_by_one = torch.stack([network(inputs[step], conditioning, step) for step in range(16)])
    torch.testing.assert_close(at_once, one_by_one)


@pytest.mark.parametrize("step", [2, 12, 22])
def test_a_step_has_the_moments_of_the_reversed_diffusion(step: int) -> None:
    """``q(z_prev | z_t) ∝ q_prev(z_prev) N(z_t; √(ᾱ/ᾱ_prev) z_prev, 1 − ᾱ/ᾱ_prev)``, integrated on a grid."""
    config = MixtureConfig(
        weights=(0.4, 0.6), means=((-0.98,), (0.6533333333,)), covariances=(((0.2,),), ((0.45,),))
    )
    model = MixtureModel(config, steps=24, eta=1.0, dtype=torch.float64)
    shift = np.dot(config.weights, [m[0] for m in config.means])
    spread = np.sqrt(np.dot(config.weights, [c[0][0] + (m[0] - shift) ** 2 for c, m in
                                             zip(config.covariances, config.means, strict=True)]))  # fmt: skip
    before, after = model.table.levels.alpha[step : step + 2] ** 2
    grid = np.linspace(-8, 8, 40_001)
    density = sum(
        weight * scipy.stats.norm.pdf(
            grid, np.sqrt(after) * (mean[0] - shift) / spread,
            np.sqrt(after * covariance[0][0] / spread**2 + 1 - after),
        )
        for weight, mean, covariance in zip(config.weights, config.means, config.covariances, strict=True)
    )  # fmt: skip
    for state in (-1.2, 0.1, 1.5):
        posterior = density * scipy.stats.norm.pdf(
            state, np.sqrt(before / after) * grid, np.sqrt(1 - before / after)
        )
        posterior /= posterior.sum()
        expected_mean = float(posterior @ grid)
        expected_variance = float(posterior @ (grid - expected_mean) ** 2)
        _, mean, root = model.step(step, torch.tensor([[state]], dtype=torch.float64))
        assert float(mean) == pytest.approx(expected_mean, abs=1e-6)
        assert float(root) ** 2 == pytest.approx(expected_variance, rel=1e-5)
