"""Reverse diffusion of a product: weighted particles (Feynman-Kac correctors), and the uncorrected weighted score.

After Skreta et al. 2025, arXiv 2503.02819, whose propositions 3.1, 3.2 and 3.3 treat the geometric average of two
models, annealing and the product of two. Here are any number of models and weights, derived anew for the
variance-preserving diffusion.

Symbols as in ``products``; ``β`` noise rate, ``τ`` reversed time, ``w`` a particle's log weight. Only scores ``s_i(x)``
are evaluated, never the divergence of one.

1. Noising is ``dx = −½ β x dt + √β dW``, so ``∂_t log q_i = ½ β (d + x·s_i + ∇·s_i + |s_i|²)``.
2. The path's unnormalised density ``π̃_t = Π q_{i,t}^{λ_i}`` changes, in reversed time, by
   ``∂_τ log π̃ = −½ β (Λ d + x·s + ∇·s + Σ λ_i |s_i|²)``.
3. Particles move by the reverse diffusion with the weighted score, ``dx = (½ β x + β s) dτ + √β dW``. If their density
   is π, that changes it by ``(1/π) (−∇·((½ β x + β s) π) + ½ β Δπ) = −½ β (d + x·s + ∇·s + |s|²)``.
4. Weights make up the difference (Feynman-Kac): ``dw/dτ`` = (2) − (3) ``= −½ β (Σ λ_i |s_i|² − |s|² + (Λ − 1) d)``.
   The divergences of the scores cancel; that of the linear drift, d, is known.
5. With Λ = 1 it is ``−½ β Σ λ_i |s_i − s|²``, never positive; for two models ``½ β λ (λ − 1) |s_1 − s_2|²``, as in
   proposition 3.1.
6. ``log Z(λ) = log Z_T + log E exp(w)``; of the standard normals at the start ``Z_T = (2π)^{d (1 − Λ) / 2} Λ^{−d/2}``.

In steps: a constituent's reverse kernel satisfies ``q_{i,k−1}(x') L(x | x') = q_{i,k}(x) R_i(x' | x)``, L the forward
kernel. Moving by the normalised ``Π R_i^{λ_i} · L^{1 − Λ}`` and adding its log mass to w (``products.reverse_step``)
therefore takes ``π̃_k`` to ``π̃_{k−1}`` without any error of discretisation if the ``R_i`` are exact; to first order the
log mass is (4). They are Gaussian here: exact for Gaussians. For mixtures what is left is the error of each
constituent's own sampler, which falls with the number of levels: log Z of a product of 1-D mixtures was 0.005, 0.002,
0.0007 nats too large, its variance 2.0, 1.3, 0.7 % too small at 32, 64, 128 levels. Where the covariances of the
``R_i`` are equal, a step's log mass is ``−Σ λ_i KL(step ‖ R_i)``: a particle pays for the path-wise KL.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.diffusion.noised import NoisedDensity
from trainers.diffusion.products import Product, ProductSamples, reverse_step
from trainers.types import FloatArray


def systematic_resample(log_weights: Tensor, generator: torch.Generator) -> Tensor:
    """Return indices of the survivors, ``[G, n]``: one uniform number per group, evenly spread (unbiased).

    Args:
        log_weights: ``[G, n]``, each row resampled for itself.
        generator: Of the uniform numbers.
    """
    groups, count = log_weights.shape
    offset = torch.rand(groups, 1, generator=generator, dtype=log_weights.dtype, device=log_weights.device)
    places = (torch.arange(count, dtype=log_weights.dtype, device=log_weights.device) + offset) / count
    heights = torch.softmax(log_weights, dim=1).cumsum(dim=1).contiguous()
    return torch.searchsorted(heights, places, right=True).clamp(max=count - 1)


def _effective(log_weights: Tensor) -> Tensor:
    """Return ``1 / Σ W²`` of normalised weights along the last dimension."""
    return torch.softmax(log_weights, dim=-1).square().sum(dim=-1).reciprocal()


@dataclass(frozen=True, kw_only=True)
class FeynmanKac:
    """Particles that move by the weighted score and carry weights (4), resampled where these become uneven."""

    resample_below: float = 0.5
    """Resample a group when its effective sample size falls below this fraction; 0 never does."""
    groups: int = 8
    """Independent groups: the standard error of ``log Z`` is taken between them. Must divide the count."""
    name: str = "fkc"

    def __call__(
        self,
        models: Sequence[NoisedDensity],
        weights: FloatArray,
        count: int,
        generator: torch.Generator,
    ) -> ProductSamples:
        """Draw ``count`` weighted samples.

        Raises:
            ValueError: The groups do not divide ``count``, or leave one particle each.
        """
        if count % self.groups or count < 2 * self.groups:
            raise ValueError(
                f"the count must be a multiple of groups, with two particles each, got {count} and {self.groups}"
            )
        product = Product(models, weights)
        shape = (self.groups, count // self.groups)
        x = product.prior(count, generator)
        logs = torch.zeros(shape, dtype=x.dtype, device=x.device)  # since the last resampling
        masses = torch.zeros(self.groups, 1, dtype=x.dtype, device=x.device)  # log Z of what came before
        lost = torch.zeros(self.groups, dtype=x.dtype, device=x.device)  # Σ 1 / ESS of every resampling
        for level in range(product.levels, -1, -1):
            shares = torch.softmax((masses + logs).flatten(), dim=0)
            scores = product.scores(level, x)
            step = reverse_step(product, level, x, scores, generator, shares=shares)
            x, logs = step.states, logs + step.log_mass.reshape(shape)
            effective = _effective(logs)
            low = effective < self.resample_below * shape[1]
            if level > 0 and bool(low.any()):
                kept = systematic_resample(logs, generator)
                kept = torch.where(low[:, None], kept, torch.arange(shape[1], device=x.device))
                first = torch.arange(self.groups, device=x.device)[:, None] * shape[1]
                x = x[(first + kept).flatten()]
                lost = torch.where(low, lost + effective.reciprocal(), lost)
                level_mass = torch.logsumexp(logs, dim=1, keepdim=True) - math.log(shape[1])
                masses = torch.where(low[:, None], masses + level_mass, masses)
                logs = torch.where(low[:, None], torch.zeros_like(logs), logs)
        total = (masses + logs).flatten()
        mass = torch.softmax(total, dim=0).reshape(shape).sum(dim=1)  # of each group
        variance = mass.square() @ (
            lost + _effective(logs).reciprocal()
        )  # of a mean, in units of one sample's
        return ProductSamples(
            name=self.name,
            samples=x,
            log_weights=total,
            acceptance=None,
            effective_samples=float(1 / variance),
            evaluations=float(product.evaluations),
            log_partition=self._log_partition(product, masses + logs),
            groups=self.groups,
        )

    def _log_partition(self, product: Product, logs: Tensor) -> tuple[float, float]:
        """Return log Z and its standard error from the groups' means, ``[G, n]`` log weights."""
        start = -0.5 * product.dimension * math.log(product.total) + 0.5 * product.dimension * (
            1 - product.total
        ) * math.log(2 * math.pi)
        group = torch.logsumexp(logs, dim=1) - math.log(logs.shape[1])
        value = float(torch.logsumexp(group, dim=0)) - math.log(self.groups)
        if self.groups == 1:
            return start + value, math.nan
        relative = torch.exp(group - value)  # of Z, with mean 1
        return start + value, float(relative.std() / math.sqrt(self.groups))


@dataclass(frozen=True, kw_only=True)
class WeightedScore:
    """The uncorrected baseline: the reverse diffusion with ``Σ λ_i s_i``, as if it were the product's score.

    It is common, and wrong for t > 0 wherever the constituents differ: its samples are *not* the product's. The weights
    must sum to 1.
    """

    name: str = "score"

    def __call__(
        self,
        models: Sequence[NoisedDensity],
        weights: FloatArray,
        count: int,
        generator: torch.Generator,
    ) -> ProductSamples:
        """Draw ``count`` samples.

        Raises:
            ValueError: The weights do not sum to 1.
        """
        product = Product(models, weights)
        if abs(product.total - 1) > 1e-6:
            raise ValueError(f"the weights of a weighted score must sum to 1, got {product.total:.6g}")
        x = product.prior(count, generator)
        for level in range(product.levels, -1, -1):
            x = reverse_step(product, level, x, product.scores(level, x), generator).states
        return ProductSamples(
            name=self.name,
            samples=x,
            log_weights=torch.zeros(count, dtype=x.dtype, device=x.device),
            acceptance=None,
            effective_samples=float(count),
            evaluations=float(product.evaluations),
            log_partition=None,
        )
