"""Which sampler of a product of diffusion models is worth its evaluations? Against exact answers, on one core.

    python benchmarks/product_samplers.py [--samples 16000] [--levels 64] [--only fkc mala …] [--seed 0]

Products ``Π q_i^{λ_i}`` whose moments, ``log Z`` and KLs to every constituent are known: Gaussians in closed form,
mixtures by quadrature. In coordinates in which the equal mixture of the constituents has mean 0 and covariance I:

    scores      evaluations of constituents per sample
    mean        largest error of a coordinate's mean, in its standard deviations
    covariance  largest error of an entry, in those of its two coordinates
    KL          largest error of a KL to a constituent, nats, by energies and the exact log Z; SE its standard error
    log Z       error, nats, and its standard error, of the samplers that estimate it
    ESS         effective samples per thousand, by the sampler's own estimate
    s/1000      seconds per 1000 samples

The last row of a problem, ``exact``, is as many independent samples of the product: what is Monte Carlo noise.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from trainers.config import MixtureConfig
from trainers.diffusion.feynman_kac import FeynmanKac, WeightedScore
from trainers.diffusion.hamiltonian import AnnealedHmc, AnnealedUha
from trainers.diffusion.langevin import AnnealedMala, AnnealedUla
from trainers.diffusion.noised import NoisedMixture, common_coordinates
from trainers.diffusion.pointwise_kl import product_kl
from trainers.diffusion.products import ProductSampler, ProductSamples
from trainers.diffusion.schedule import cosine_alpha_bars
from trainers.types import FloatArray

SAMPLERS: dict[str, ProductSampler] = {
    "score (uncorrected)": WeightedScore(),
    "fkc": FeynmanKac(),
    "fkc, never resampled": FeynmanKac(resample_below=0.0),
    "ula": AnnealedUla(),
    "uha": AnnealedUha(),
    "mala": AnnealedMala(),
    "mala, line integral": AnnealedMala(use_density=False),
    "hmc": AnnealedHmc(),
    "hmc, line integral": AnnealedHmc(use_density=False),
    "hmc, unadjusted": AnnealedHmc(metropolis=False),
}
REACH = 8.0
"""Half the width of the quadrature's grid, in standard deviations."""


def gaussian(mean: tuple[float, ...], covariance: tuple[tuple[float, ...], ...]) -> MixtureConfig:
    """Return one Gaussian."""
    return MixtureConfig(weights=(1.0,), means=(mean,), covariances=(covariance,))


def random_gaussian(seed: int, dimension: int) -> MixtureConfig:
    """Return a correlated Gaussian somewhere near the origin."""
    generator = np.random.default_rng(seed)
    root = generator.normal(size=(dimension, dimension))
    covariance = root @ root.T / dimension + 0.2 * np.eye(dimension)
    mean = 0.7 * generator.normal(size=dimension)
    return gaussian(tuple(mean.tolist()), tuple(tuple(row) for row in covariance.tolist()))


_WIDE = gaussian((-1.0, 0.0), ((1.0, 0.6), (0.6, 0.8)))
_NARROW = gaussian((1.0, 0.5), ((0.3, -0.1), (-0.1, 1.2)))
_ALIKE = gaussian((1.2, 0.4), ((0.3, -0.1), (-0.1, 1.0)))

PROBLEMS: dict[str, tuple[list[MixtureConfig], FloatArray]] = {
    "two Gaussians, 2-D": ([_WIDE, _NARROW], np.array([0.4, 0.6])),
    "three Gaussians, two alike, 2-D": ([_WIDE, _NARROW, _ALIKE], np.array([0.5, 0.25, 0.25])),
    "two mixtures, 1-D": (
        [
            MixtureConfig(weights=(0.4, 0.6), means=((-1.5,), (1.5,)), covariances=(((0.2,),), ((0.4,),))),
            MixtureConfig(weights=(0.7, 0.3), means=((-1.0,), (2.0,)), covariances=(((0.5,),), ((0.3,),))),
        ],
        np.array([0.5, 0.5]),
    ),
    "two mixtures, 2-D": (
        [
            MixtureConfig(
                weights=(0.4, 0.6),
                means=((-1.5, 0.0), (1.5, 0.5)),
                covariances=(((0.3, 0.1), (0.1, 0.5)), ((0.4, -0.1), (-0.1, 0.2))),
            ),
            MixtureConfig(
                weights=(0.7, 0.3),
                means=((-1.0, -0.5), (1.2, 1.0)),
                covariances=(((0.5, 0.0), (0.0, 0.3)), ((0.3, 0.1), (0.1, 0.5))),
            ),
        ],
        np.array([0.5, 0.5]),
    ),
    "two Gaussians far apart, 2-D": (
        [
            gaussian((-3.0, 0.0), ((0.5, 0.1), (0.1, 0.5))),
            gaussian((3.0, 0.0), ((0.3, 0.0), (0.0, 0.6))),
        ],
        np.array([0.5, 0.5]),
    ),
    "two Gaussians, 8-D": ([random_gaussian(0, 8), random_gaussian(1, 8)], np.array([0.5, 0.5])),
}


@dataclass(frozen=True, kw_only=True)
class Exact:
    """What is known of a product."""

    log_partition: float
    mean: Tensor
    covariance: Tensor
    kls: Tensor
    draw: Callable[[int, torch.Generator], Tensor]
    """Independent samples, ``[n, d]``."""


def by_quadrature(white: Sequence[MixtureConfig], weights: FloatArray) -> Exact:
    """Return the answers for mixtures in one or two dimensions; samples are uniform in their cell of the grid."""
    dimension = white[0].dimension
    axis = torch.linspace(-REACH, REACH, 8001 if dimension == 1 else 801, dtype=torch.float64)
    width = float(axis[1] - axis[0])
    grid = torch.cartesian_prod(*[axis] * dimension).reshape(-1, dimension)
    logs = torch.stack([NoisedMixture(c, alpha_bars=np.array([1.0])).log_density(0, grid) for c in white])
    log = torch.tensor(weights) @ logs
    log_partition = float(torch.logsumexp(log, dim=0)) + dimension * math.log(width)
    shares = torch.softmax(log, dim=0)
    mean = shares @ grid

    def draw(count: int, generator: torch.Generator) -> Tensor:
        cells = torch.multinomial(shares, count, replacement=True, generator=generator)
        return grid[cells] + width * (torch.rand(count, dimension, generator=generator) - 0.5)

    return Exact(
        log_partition=log_partition,
        mean=mean,
        covariance=(grid * shares[:, None]).T @ grid - torch.outer(mean, mean),
        kls=(log - log_partition - logs) @ shares,
        draw=draw,
    )


def of_gaussians(white: Sequence[MixtureConfig], weights: FloatArray) -> Exact:
    """Return the answers for Gaussians."""
    each = [
        MultivariateNormal(
            torch.tensor(config.means[0], dtype=torch.float64),
            torch.tensor(config.covariances[0], dtype=torch.float64),
        )
        for config in white
    ]
    precisions = [weight * c.precision_matrix for weight, c in zip(weights, each, strict=True)]
    covariance = torch.linalg.inv(torch.stack(precisions).sum(dim=0))
    pull = torch.stack([p @ c.mean for p, c in zip(precisions, each, strict=True)]).sum(dim=0)
    product = MultivariateNormal(covariance @ pull, covariance)
    kls = torch.stack([kl_divergence(product, c) for c in each])

    def draw(count: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(count, len(pull), generator=generator, dtype=torch.float64)
        return product.mean + noise @ product.scale_tril.T

    return Exact(
        log_partition=-float(torch.tensor(weights) @ kls),
        mean=product.mean,
        covariance=covariance,
        kls=kls,
        draw=draw,
    )


def independent(samples: Tensor) -> ProductSamples:
    """Return samples as those of a sampler that costs nothing."""
    return ProductSamples(
        name="exact",
        samples=samples,
        log_weights=torch.zeros(len(samples), dtype=samples.dtype),
        acceptance=None,
        effective_samples=float(len(samples)),
        evaluations=0.0,
        log_partition=None,
    )


def row(label: str, drawn: ProductSamples, kls: tuple[float, float], exact: Exact, seconds: float) -> str:
    """Return one line of the table."""
    shares, scale = drawn.weights, exact.covariance.diagonal().sqrt()
    mean = shares @ drawn.samples
    offset = drawn.samples - mean
    covariance = (offset * shares[:, None]).T @ offset
    mean_error = float(((mean - exact.mean) / scale).abs().max())
    covariance_error = float(((covariance - exact.covariance) / torch.outer(scale, scale)).abs().max())
    count = len(drawn.samples)
    partition = "                "
    if drawn.log_partition is not None:
        value, error = drawn.log_partition
        partition = f"{value - exact.log_partition:+8.4f} ±{error:.4f}"
    acceptance = "    " if drawn.acceptance is None else f"{float(drawn.acceptance.mean()):4.2f}"
    return (
        f"  {label:22s} {drawn.evaluations:6.0f} {mean_error:7.4f} {covariance_error:10.4f} "
        f"{kls[0]:7.4f} ±{kls[1]:.4f} {partition:16s} {acceptance:>10s} "
        f"{1000 * drawn.effective_samples / count:5.0f} {1000 * seconds / count:7.3f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=16_000)
    parser.add_argument("--levels", type=int, default=64)
    parser.add_argument("--only", nargs="*", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    print(
        "  sampler                scores    mean covariance      KL      SE    log Z      SE acceptance   ESS  s/1000"
    )
    for title, (configs, weights) in PROBLEMS.items():
        common = common_coordinates(configs)
        white = [common.whiten(config) for config in configs]
        simple = all(len(config.weights) == 1 for config in white)
        exact = (of_gaussians if simple else by_quadrature)(white, weights)
        models = [NoisedMixture(c, alpha_bars=cosine_alpha_bars(arguments.levels)) for c in white]
        listed = ", ".join(f"{float(kl):.3f}" for kl in exact.kls)
        print(f"{title}: log Z {exact.log_partition:.3f}, KLs {listed}")
        for label in [*arguments.only, "exact"]:
            generator = torch.Generator().manual_seed(arguments.seed)
            start = time.perf_counter()
            if label == "exact":
                drawn = independent(exact.draw(arguments.samples, generator))
            else:
                drawn = SAMPLERS[label](models, weights, arguments.samples, generator)
            seconds = time.perf_counter() - start
            estimates = product_kl(models, weights, drawn, log_partition=exact.log_partition)
            errors = [abs(e.mean - float(kl)) for e, kl in zip(estimates, exact.kls, strict=True)]
            worst = int(np.argmax(errors))
            print(
                row(label, drawn, (errors[worst], estimates[worst].standard_error), exact, seconds),
                flush=True,
            )


if __name__ == "__main__":
    main()
