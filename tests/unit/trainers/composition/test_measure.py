"""Compositions of Gaussians at given weights, by every sampler: KLs, dual, rewards and optimum in closed form."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import norm
from support.tiers import further

from trainers.composition.mixtures import SAMPLERS, Product, Sum
from trainers.config import MixtureConfig
from trainers.diffusion.products import ProductSamples
from trainers.rewards.analytic import Linear

COUNT = 4096
CORRECTED = sorted(set(SAMPLERS) - {"score"})


@dataclass(frozen=True)
class Gaussians:
    """``p ∝ Π N(m_i, S_i)^{λ_i} exp(μ·r)`` with weights that sum to 1, ``r`` the coordinates."""

    means: np.ndarray  # [m, d]
    covariances: np.ndarray  # [m, d, d]
    weights: np.ndarray  # [m]

    @property
    def configs(self) -> list[MixtureConfig]:
        return [
            MixtureConfig(weights=(1.0,), means=(tuple(mean),), covariances=(tuple(map(tuple, covariance)),))
            for mean, covariance in zip(self.means.tolist(), self.covariances.tolist(), strict=True)
        ]

    def exact(self, tilt: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Return KLs ``[m]``, the mean ``[d]`` and the dual ``−log Z = Σ λ_i KL_i − μ·E[r]``."""
        each = np.linalg.inv(self.covariances)
        precision = np.einsum("m,mij->ij", self.weights, each)
        pull = np.einsum("m,mij,mj->i", self.weights, each, self.means) + tilt
        mean, covariance = np.linalg.solve(precision, pull), np.linalg.inv(precision)
        offset = self.means - mean
        kl = 0.5 * (
            np.einsum("mij,ji->m", each, covariance)
            + np.einsum("mi,mij,mj->m", offset, each, offset)
            - len(mean)
            + np.linalg.slogdet(self.covariances)[1]
            - np.linalg.slogdet(covariance)[1]
        )
        return kl, mean, float(self.weights @ kl - tilt @ mean)


HALF = np.array([0.5, 0.5])
ALIKE = Gaussians(np.array([[-1.0], [1.0]]), np.array([[[1.0]], [[1.0]]]), HALF)
UNEQUAL = Gaussians(np.array([[-1.0], [1.0]]), np.array([[[1.0]], [[0.3]]]), np.array([0.4, 0.6]))
PLANE = Gaussians(
    np.array([[-1.0, 0.0], [1.0, 0.5], [1.2, 0.4]]),
    np.array([[[1.0, 0.6], [0.6, 0.8]], [[0.3, -0.1], [-0.1, 1.2]], [[0.3, -0.1], [-0.1, 1.0]]]),
    np.array([0.5, 0.25, 0.25]),
)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_two_equal_gaussians_are_half_a_nat_from_their_product(sampler: str) -> None:
    """Also the uncorrected score: where variances are equal it is that of the noised product."""
    measured = Product(ALIKE.configs, [], sampler=SAMPLERS[sampler](), levels=64)(HALF, np.zeros(0), COUNT, 0)
    assert measured.kl == pytest.approx([0.5, 0.5], abs=0.05)
    assert measured.dual == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("problem", "tilt"),
    [(UNEQUAL, 0.0), (PLANE, 0.7), *further((UNEQUAL, 0.7), (PLANE, 0.0))],
    ids=["line", "plane with a price", "line with a price", "plane"],
)
@pytest.mark.parametrize("sampler", CORRECTED)
def test_unequal_gaussians_with_and_without_a_price(sampler: str, problem: Gaussians, tilt: float) -> None:
    dimension = problem.means.shape[1]
    direction = np.eye(dimension)[0]
    product = Product(
        problem.configs, [Linear(tuple(direction.tolist()))], sampler=SAMPLERS[sampler](), levels=64
    )
    kl, mean, dual = problem.exact(tilt * direction)
    found = [product(problem.weights, np.array([tilt]), COUNT, seed) for seed in range(2)]
    # What 64 levels leave of bias, most of it the finite steps of ula (diffusion/langevin.py), and the noise.
    bias = 0.12 if sampler == "ula" else 0.02
    for name, exact, errors in (("kl", kl, "kl_error"), ("rewards", mean[:1], "reward_error")):
        values = np.mean([getattr(one, name) for one in found], axis=0)
        noise = np.mean([getattr(one, errors) for one in found], axis=0) / len(found) ** 0.5
        assert (np.abs(values - exact) < bias + 4 * noise).all(), (values, exact, noise)
    assert np.mean([one.dual for one in found]) == pytest.approx(dual, abs=0.03)
    for one in found:  # an identity of the estimates too
        assert one.dual == pytest.approx(problem.weights @ one.kl - tilt * one.rewards[0], abs=1e-9)


def test_weights_are_normalised_whatever_constant_they_come_with() -> None:
    logs = torch.tensor([0.3, -0.4, 1.0], dtype=torch.float64)
    for given in (logs, logs + 5.0, torch.zeros(3, dtype=torch.float64)):
        samples = ProductSamples(
            name="any",
            samples=torch.zeros(3, 1, dtype=torch.float64),
            log_weights=given,
            acceptance=None,
            effective_samples=3.0,
            evaluations=1.0,
            log_partition=None,
        )
        assert float(samples.log_weights.exp().sum()) == pytest.approx(1.0)
        torch.testing.assert_close(samples.weights, torch.softmax(given, dim=0))


def test_a_sum_knows_the_log_ratio_of_every_sample_to_each_model() -> None:
    """By the densities at the samples, which the reward is, but for the noise of the lowest level."""
    weights = np.array([0.3, 0.7])
    found = Sum(UNEQUAL.configs, [Linear((1.0,))])(weights, np.zeros(1), 64, 0)
    each = np.stack([norm.logpdf(found.scores[0], mean, scale) for mean, scale in ((-1, 1.0), (1, 0.3**0.5))])
    expected = np.log(weights @ np.exp(each)) - each
    assert found.log_ratio == pytest.approx(expected, abs=0.02)
    product = Product(UNEQUAL.configs, [], sampler=SAMPLERS["fkc"](), levels=8)
    assert product(weights, np.zeros(0), 64, 0).log_ratio is None
