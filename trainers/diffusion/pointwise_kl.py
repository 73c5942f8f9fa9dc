"""Point-wise KL: between the distributions of final samples, in nats. Two estimators, and where each applies.

``pointwise`` needs the noised scores of both models, at samples of the first:

    KL(p_0 ‖ q_0) = ½ ∫ β E_{p_t} |s_p − s_q|² dt + KL(p_T ‖ q_T)

- A trained adapter against its base, a mixture against a mixture: yes, each has a noised score of its own.
- A product ``Π q_i^{λ_i}`` against a constituent: no, as ``Σ λ_i s_i`` is not the score of the noised product.

``energy`` is for the product: densities at t = 0, at samples of it from a sampler that corrects:

    KL(p ‖ q_i) = E_p[Σ_j λ_j log q_j − log q_i] − log Z(λ)

- Mixtures and energy-based models: yes, by their densities at level 0, with its ``1 − ᾱ_0`` of noise.
- Networks with scores only: no. The weights of ``FeynmanKac`` still give ``−log Z(λ) = Σ λ_i KL(p ‖ q_i)`` there, and
  differences of it along the simplex the single KLs: ``KL_j − KL_i`` is its derivative from j to i.

Neither is the path-wise KL (``path_kl``), which bounds them from above.

The integral: with ``ᾱ = cos² θ``, ``β dt = −d log ᾱ = 2 tan θ dθ``, and ``tan θ |s_p − s_q|²`` is smooth in θ and zero
at both ends, so it takes the trapezoid rule in θ over θ = 0 and the levels. Beyond the last level the models differ, to
first order in ᾱ, only in their means, and what is left of the integral and of the KL is ``½ |s_p − s_q|²`` there. In
noise predictions the weight of a level with a share β of ``∫ β dt`` is ``β / (2 (1 − ᾱ))``, the limit of small steps of
``β / (2 (1 − β)(1 − ᾱ))``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainers.diffusion.noised import NoisedDensity
from trainers.diffusion.products import Product, ProductSamples, gaussian_noise
from trainers.types import FloatArray

POINTWISE = "pointwise"
ENERGY = "energy"


@dataclass(frozen=True, kw_only=True)
class KlEstimate:
    """A KL with the error of its Monte Carlo."""

    mean: float
    """Nats."""
    standard_error: float
    """Of the mean, nats; not of the discretisation."""
    estimator: str
    """``pointwise`` or ``energy``."""


def pointwise_weights(alpha_bars: FloatArray) -> FloatArray:
    """Return the factor of ``|s_p − s_q|²`` at every level, ``[K + 1]``, the tail beyond the last one included."""
    angles = np.arccos(np.sqrt(alpha_bars))
    grid = np.concatenate([[0.0], angles])
    widths = np.diff(grid)  # [K + 1], the interval before each level
    weights = np.tan(angles) * 0.5 * (widths + np.append(widths[1:], 0.0))
    weights[-1] += 0.5
    return np.asarray(weights)


def pointwise_kl(
    p: NoisedDensity, q: NoisedDensity, samples: Tensor, generator: torch.Generator
) -> KlEstimate:
    """Estimate ``KL(p_0 ‖ q_0)`` from independent samples of ``p_0``, each noised once to every level.

    Args:
        p: Whose samples these are.
        q: To which.
        samples: Clean, ``[n, d]``, n at least 2.
        generator: Of the noise.

    Raises:
        ValueError: The models differ in their levels, or there is only one sample.
    """
    if not np.array_equal(p.alpha_bars, q.alpha_bars):
        raise ValueError("a point-wise KL needs both models on the same noise levels")
    count, dimension = samples.shape
    if count < 2:
        raise ValueError(f"a point-wise KL with its error needs at least 2 samples, got {count}")
    total = torch.zeros(count, dtype=samples.dtype, device=samples.device)
    for level, weight in enumerate(pointwise_weights(p.alpha_bars)):
        alpha_bar = float(p.alpha_bars[level])
        noise = gaussian_noise(count, dimension, generator, samples.dtype)
        x = math.sqrt(alpha_bar) * samples + math.sqrt(1 - alpha_bar) * noise
        total += float(weight) * (p.score(level, x) - q.score(level, x)).square().sum(dim=1)
    return KlEstimate(
        mean=float(total.mean()),
        standard_error=float(total.std() / math.sqrt(count)),
        estimator=POINTWISE,
    )


def product_kl(
    models: Sequence[NoisedDensity],
    weights: FloatArray,
    drawn: ProductSamples,
    *,
    log_partition: float | None = None,
) -> list[KlEstimate]:
    """Estimate ``KL(p ‖ q_i)`` of the product to every model, by energies at samples of the product.

    The standard error is that of a jackknife over the sampler's groups where it has several: it then contains the error
    of ``log Z`` and what that has in common with the mean. Else it is that of independent samples.

    Args:
        models: With densities; those of weight 0 too.
        weights: ``λ``, ``[m]``, with sum 1.
        drawn: Samples of the product.
        log_partition: ``log Z(λ)`` where it is known exactly; by default the sampler's.

    Raises:
        ValueError: A model has no density, the weights do not sum to 1, or ``log Z`` is neither given nor estimated.
    """
    if not all(model.has_density for model in models):
        raise ValueError(
            "KLs of a product by energies need the density of every model, and a diffusion network has only scores"
        )
    product = Product(models, weights)
    if abs(product.total - 1) > 1e-6:
        raise ValueError(f"KLs of a product need weights that sum to 1, got {product.total:.6g}")
    estimated = drawn.log_partition if log_partition is None else (log_partition, 0.0)
    if estimated is None:
        raise ValueError(f"sampler {drawn.name} does not estimate log Z: give log_partition, or use fkc")
    energy = product.log_density(0, drawn.samples)
    gaps = torch.stack([energy - model.log_density(0, drawn.samples) for model in models])  # [m, n]
    shares = drawn.weights
    means = gaps @ shares - estimated[0]
    if drawn.groups > 1:
        errors = jackknife(gaps, shares, drawn.groups, with_partition=log_partition is None)
    else:
        residual = gaps - (gaps @ shares)[:, None]
        errors = ((shares * residual).square().sum(dim=1) + estimated[1] ** 2).sqrt()
    return [
        KlEstimate(mean=float(mean), standard_error=float(error), estimator=ENERGY)
        for mean, error in zip(means, errors, strict=True)
    ]


def jackknife(gaps: Tensor, shares: Tensor, groups: int, *, with_partition: bool) -> Tensor:
    """Return standard errors ``[m]`` of ``E[gap] − log Z``, or of ``E[gap]`` alone, leaving one group out at a time.

    A group's share of the weight is its estimate of Z, up to a factor.
    """
    masses = shares.reshape(groups, -1).sum(dim=1)
    sums = (gaps * shares).reshape(len(gaps), groups, len(shares) // groups).sum(dim=2)
    left = 1 - masses
    values = (sums.sum(dim=1, keepdim=True) - sums) / left
    if with_partition:
        values = values - torch.log(left)
    return ((groups - 1) / groups * (values - values.mean(dim=1, keepdim=True)).square().sum(dim=1)).sqrt()
