"""Sampling from a product ``p ∝ Π_i q_i^{λ_i}`` of diffusion models: what the samplers share.

Symbols: ``q_{i,t}`` constituent i noised to level t, with score ``s_i``; ``Λ = Σ λ_i``; ``π_t ∝ Π_i q_{i,t}^{λ_i}``,
whose score is ``s = Σ λ_i s_i``. ``π_t`` at t = 0 is the product. For t > 0 it is *not* the product's noised density,
so the reverse diffusion driven by ``s`` ends elsewhere (Du et al. 2023, arXiv 2302.11552). It is still a path from
noise to the product, and two families follow it: annealed MCMC, which moves the states of every level towards
``π_t`` (``langevin``, ``hamiltonian``), and weighted particles (``feynman_kac``). ``FeynmanKac`` is the one to take
first: ``benchmarks/product_samplers.py`` has the figures.

All start at level K from ``N(0, I / Λ)``, visit the levels from noisy to clean and take a last, denoising step from
level 0 (``ᾱ = 1 − 1e-4`` in the cosine schedule) to clean. The start is wrong by ``√ᾱ_K`` times the means: 0.003.
Without weights the last step leaves the difference between ``π_0`` and the product, of relative order
``(1 − ᾱ_0) / v`` in the smallest variance v.

One step from a level to the next takes ``Π_i R_i^{λ_i}`` of the constituents' reverse steps ``R_i(x' | x)``,
normalised. ``R_i`` is a Gaussian with DDPM's mean and the covariance ``σ² I + b² C_i``, the same for all states of a
level: ``b`` is the factor of ``x̂_i = E[x_0 | x]`` in the mean, and ``C_i = (1 − ᾱ)/√ᾱ · E_π[∇x̂_i]`` the mean
covariance of ``x_0`` given ``x`` (Bao et al. 2022, arXiv 2201.06503, has it isotropic and for one model). No network
is differentiated: with the regression ``x̂_i = A_i x + r_i`` over the particles, ``E_π[∇x̂_i] = A_i − E_π[r_i sᵀ]`` by
Stein's identity, as ``s`` is the score of ``π_t``. For Gaussians the step is exact.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from trainers.diffusion.noised import NoisedDensity
from trainers.diffusion.schedule import ddim_steps
from trainers.types import FloatArray

_FULL_COVARIANCE = 32
"""Dimensions up to which a step's covariance is a full matrix; beyond, it is a multiple of the identity."""

_PSEUDO_SAMPLES = 16
"""What a prior guess of ``E[∇x̂]`` counts, in particles; a full matrix needs as many per coordinate."""
_LEAST_SPREAD = 1e-6
"""Least eigenvalue of ``E[∇x̂]``: the step to clean has no other noise."""


@dataclass(frozen=True, kw_only=True)
class ProductSamples:
    """Samples of a product, ``n`` of them, and what they cost."""

    name: str
    """Of the sampler."""
    samples: Tensor
    """``[n, d]``."""
    log_weights: Tensor
    """``[n]``; their exponentials sum to 1, whatever constant they are given with: zeros become ``−log n``."""
    acceptance: Tensor | None
    """``[n]``, mean probability of acceptance of each sample's proposals; None without Metropolis."""
    effective_samples: float
    """As many independent samples would give a mean of the same variance, by the sampler's own estimate."""
    evaluations: float
    """Scores per sample, summed over the constituents."""
    log_partition: tuple[float, float] | None
    """``log Z(λ) = log ∫ Π q_i^{λ_i}``, nats, and its standard error; None where the sampler does not know."""
    groups: int = 1
    """Consecutive blocks of samples that never interacted; a standard error may be taken between them."""

    def __post_init__(self) -> None:
        """Normalise the weights, here and nowhere else: a mean of ``exp`` over samples is a plain sum."""
        object.__setattr__(self, "log_weights", torch.log_softmax(self.log_weights, dim=0))

    @property
    def weights(self) -> Tensor:
        """``[n]``, positive, with sum 1."""
        return self.log_weights.exp()


class ProductSampler(Protocol):
    """A sampler with its settings."""

    def __call__(
        self,
        models: Sequence[NoisedDensity],
        weights: FloatArray,
        count: int,
        generator: torch.Generator,
    ) -> ProductSamples:
        """Draw ``count`` samples of ``Π q_i^{λ_i}`` with ``weights`` ``λ``, ``[m]``."""
        ...


class Product:
    """The constituents with a positive weight, and the path ``π_t`` between noise and their product."""

    def __init__(self, models: Sequence[NoisedDensity], weights: FloatArray) -> None:
        """Check that the constituents go together.

        Raises:
            ValueError: Weights do not fit the models, are negative or all zero, or the models differ in levels,
                dimension or precision.
        """
        values = np.asarray(weights, dtype=np.float64)
        if values.shape != (len(models),):
            raise ValueError(
                f"a product needs one weight per model, got {values.shape} for {len(models)} models"
            )
        if not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
            raise ValueError(f"weights must be finite, >= 0 and not all 0, got {values.tolist()}")
        self._models = [model for model, weight in zip(models, values, strict=True) if weight > 0]
        first = self._models[0]
        for model in self._models[1:]:
            if (
                model.dimension != first.dimension
                or model.dtype != first.dtype
                or not np.array_equal(model.alpha_bars, first.alpha_bars)
            ):
                raise ValueError("the constituents of a product must share levels, dimension and precision")
        self.weights = values[values > 0]
        self.total = float(self.weights.sum())
        self.alpha_bars, self.dimension, self.dtype = first.alpha_bars, first.dimension, first.dtype
        self.table = ddim_steps(np.concatenate([[1.0], self.alpha_bars]), 1.0)  # the last step ends clean
        self.has_density = all(model.has_density for model in self._models)
        self.evaluations = 0

    @property
    def levels(self) -> int:
        """The noisiest level, K."""
        return len(self.alpha_bars) - 1

    def prior(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw states of level K, ``[count, d]``, from ``N(0, I / Λ)``."""
        return gaussian_noise(count, self.dimension, generator, self.dtype) / math.sqrt(self.total)

    def scores(self, level: int, x: Tensor) -> Tensor:
        """Return every constituent's score, ``[m, n, d]``."""
        self.evaluations += len(self._models)
        return torch.stack([model.score(level, x) for model in self._models])

    def combine(self, values: Tensor) -> Tensor:
        """Return ``Σ λ_i v_i`` of values ``[m, …]``."""
        total: Tensor = torch.tensordot(values.new_tensor(self.weights), values, dims=1)
        return total

    def log_density(self, level: int, x: Tensor) -> Tensor:
        """Return ``Σ λ_i log q_{i,t}``, ``[n]``, nats: ``log π_t`` up to a constant."""
        return self.combine(torch.stack([model.log_density(level, x) for model in self._models]))


def gaussian_noise(count: int, dimension: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Draw ``[count, dimension]`` standard normals where the generator lives."""
    return torch.randn(count, dimension, generator=generator, dtype=dtype, device=generator.device)


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Where a step brought the states, and what it owes ``Π q_i^{λ_i}``."""

    states: Tensor
    """``[n, d]``, at the next cleaner level; clean after level 0."""
    log_mass: Tensor
    """``[n]``, ``log ∫ Π R_i^{λ_i} dx'``, nats: the weight that a Feynman-Kac corrector gives."""


def _log_det(precision: Tensor, dimension: int) -> Tensor:
    """Return the log determinant of a block matrix whose blocks ``[B, b, b]`` fill ``dimension`` coordinates."""
    logs: Tensor = torch.linalg.slogdet(precision)[1]  # [..., B]
    return logs.sum(dim=-1) * (dimension / (logs.shape[-1] * precision.shape[-1]))


def _spread(clean: Tensor, x: Tensor, score: Tensor, shares: Tensor, alpha_bar: float) -> Tensor:
    """Return ``E[∇x̂_i]``, symmetric, ``[m, 1, b, b]``: b = d, or b = 1 for the mean of its diagonal.

    Few particles are not trusted: the regression starts from ``A = √ᾱ I``, that of data with covariance I.

    Args:
        clean: ``x̂_i``, ``[m, n, d]``.
        x: ``[n, d]``.
        score: Of ``π_t``, ``[n, d]``.
        shares: Of the particles, ``[n]``, with sum 1.
        alpha_bar: Of the level.
    """
    dimension = x.shape[1]
    free = max(float(1 / shares.square().sum()) - 1, 0.0)
    full = dimension <= _FULL_COVARIANCE and free >= _PSEUDO_SAMPLES * dimension
    trust = free * (1 if full else dimension)
    trust /= trust + _PSEUDO_SAMPLES
    prior = (1 - trust) * torch.eye(dimension if full else 1, dtype=x.dtype, device=x.device)
    centered = x - shares @ x
    guesses = clean - (shares @ clean)[:, None]
    weighted = shares[:, None] * centered
    if full:
        moment = trust * weighted.T @ centered + prior
        slope = torch.linalg.solve(
            moment, trust * weighted.T @ guesses + alpha_bar**0.5 * prior
        )  # x̂_i ≈ x @ slope
        rest = guesses - centered @ slope
        gradient = slope - trust * (shares[:, None] * score).T @ rest
        values, vectors = torch.linalg.eigh(0.5 * (gradient + gradient.mT))
        result: Tensor = ((vectors * values.clamp(min=_LEAST_SPREAD)[:, None]) @ vectors.mT)[:, None]
        return result
    moment = trust * (weighted * centered).sum() / dimension + prior
    slope = (
        trust * (weighted * guesses).sum(dim=(1, 2), keepdim=True) / dimension + alpha_bar**0.5 * prior
    ) / moment
    rest = guesses - slope * centered
    correction = (shares[:, None] * score * rest).sum(dim=(1, 2), keepdim=True) / dimension
    average: Tensor = (slope - trust * correction).clamp(min=_LEAST_SPREAD)[:, None]
    return average


def reverse_step(
    product: Product,
    level: int,
    x: Tensor,
    scores: Tensor,
    generator: torch.Generator,
    *,
    shares: Tensor | None = None,
) -> StepResult:
    """Take states from ``level`` to the next cleaner one by the normalised product of the constituents' steps.

    With ``R_i = N(μ_i, P_i⁻¹)`` and, as one more constituent, the forward kernel ``N(x; √α x', (1 − α) I)`` seen as a
    function of ``x'`` with weight ``1 − Λ`` (nothing where the weights sum to 1), the product has precision
    ``P = Σ λ_i P_i``, mean ``μ = P⁻¹ Σ λ_i P_i μ_i`` and log mass
    ``½ (Σ λ_i log det P_i − log det P) − ½ Σ λ_i (μ_i − μ)ᵀ P_i (μ_i − μ)``.

    Args:
        product: The constituents.
        level: From which, 0 to K.
        x: ``[n, d]``.
        scores: At ``x``, ``[m, n, d]``.
        generator: Of the noise.
        shares: Of the particles, ``[n]``, with sum 1; equal by default.
    """
    count = len(x)
    table, k = product.table, product.levels - level
    alpha_bar, factor = float(product.alpha_bars[level]), float(table.from_clean[k])
    shares = torch.full((count,), 1 / count, dtype=x.dtype, device=x.device) if shares is None else shares
    clean = (x + (1 - alpha_bar) * scores) / math.sqrt(alpha_bar)
    spread = _spread(clean, x, product.combine(scores), shares, alpha_bar)
    size = spread.shape[-1]
    identity = torch.eye(size, dtype=x.dtype, device=x.device)
    covariance = (
        float(table.noise[k]) ** 2 * identity + factor**2 * (1 - alpha_bar) / math.sqrt(alpha_bar) * spread
    )
    means = table.mean(k, x, clean)
    precisions, weights = torch.linalg.inv(covariance), x.new_tensor(product.weights)
    constant = 0.0
    if abs(1 - product.total) > 1e-9:
        means, precisions, weights, constant = _with_forward_kernel(
            product, level, x, means, precisions, weights
        )
    return _draw_product(means, precisions, weights, generator, constant)


def _with_forward_kernel(
    product: Product, level: int, x: Tensor, means: Tensor, precisions: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Append the forward kernel with weight ``1 − Λ``, and the constant of a density of ``x``, not of ``x'``."""
    dimension = x.shape[1]
    alpha = float(product.alpha_bars[level] / (product.alpha_bars[level - 1] if level else 1.0))
    rest = 1 - weights.sum()
    kernel = (alpha / (1 - alpha)) * torch.eye(precisions.shape[-1], dtype=x.dtype, device=x.device)
    return (
        torch.cat([means, x[None] / math.sqrt(alpha)]),
        torch.cat([precisions, kernel.expand_as(precisions[:1])]),
        torch.cat([weights, rest[None]]),
        -0.5 * dimension * math.log(alpha) * float(rest),
    )


def _draw_product(
    means: Tensor, precisions: Tensor, weights: Tensor, generator: torch.Generator, constant: float
) -> StepResult:
    _, count, dimension = means.shape
    size = precisions.shape[-1]
    blocks = means.reshape(len(means), count, -1, size)  # [m, n, B, b]
    precision = torch.tensordot(weights, precisions, dims=1)  # [1, b, b]
    pull = torch.einsum("m,muij,mnuj->nui", weights, precisions.expand(-1, blocks.shape[2], -1, -1), blocks)
    root = torch.linalg.cholesky(precision)
    center = torch.cholesky_solve(pull[..., None], root)[..., 0]  # [n, B, b]
    offset = blocks - center
    mismatch = torch.einsum(
        "m,mnui,muij,mnuj->n", weights, offset, precisions.expand(-1, blocks.shape[2], -1, -1), offset
    )
    logs = weights @ _log_det(precisions, dimension) - _log_det(precision, dimension)
    noise = gaussian_noise(count, dimension, generator, means.dtype).reshape(count, -1, size, 1)
    moved = center + torch.linalg.solve_triangular(root.mT, noise, upper=True)[..., 0]
    return StepResult(states=moved.reshape(count, dimension), log_mass=0.5 * logs - 0.5 * mismatch + constant)
