"""Products and sums of Gaussian mixtures: moments and KLs at given weights.

Symbols:

    q_i     sum_k w_ik N(m_ik, S_ik)                       model i of m
    r_j(x)  d_j'x − ½ (x − a_j)'A_j(x − a_j)               a linear or concave quadratic reward
    θ       (λ, μ)                                         weights on the simplex, multipliers >= 0
    φ(x)    (log q_1, .., log q_m, r_1, .., r_n)           so that the product is exp(θ'φ) / Z(θ)

1. One Gaussian per model: φ is quadratic and the product a Gaussian of precision P = Σ θ_f A_f, with
   log Z = θ'φ(c) + ½ log det 2πP⁻¹ at its center c; E[φ] and Cov[φ], gradient and Hessian of log Z, are closed form.
2. Mixtures: q_i^λ_i <= Σ_k (w_ik N_ik)^λ_i, hence the product of mixtures lies below the sum, over all choices of
   one component per model, of Gaussians as in 1, and none of these has more mass than Z. Their boxes cover the
   product up to e^-36; inside, quadrature.
3. Sums are Σ λ_i q_i; their KLs need quadrature even for single Gaussians.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.frontier.problems.exact import reward_form
from orchestrator.frontier.problems.quadrature import Gaussians, Grid, log_density
from trainers.config import MixtureConfig, RewardConfig

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PoolMoments:
    """A product or a sum at given weights."""

    kl: FloatArray
    """``[m]``, nats, to or from each model."""
    rewards: FloatArray
    """``[n]``, expected, reward units."""
    curvature: FloatArray
    """``[m + n, m + n]``, minus the Hessian of the dual: of log Z for products, −∫ q_i q_j / p for sums."""
    mean: FloatArray
    """``[d]``"""
    covariance: FloatArray
    """``[d, d]``"""


class Pool(Protocol):
    """A way to combine models, with one accuracy."""

    def moments(self, weights: FloatArray, tilt: FloatArray) -> PoolMoments:
        """At weights ``[m]`` on the simplex and a tilt ``[n]`` >= 0, nats per reward unit."""
        ...

    def finer(self) -> "Pool | None":
        """The same with half the spacing; None if this one is exact."""
        ...


class _Products:
    """The Gaussian products of every choice of one component per model, ``T`` in all; ``F = m + n``."""

    def __init__(self, models: Sequence[MixtureConfig], rewards: Sequence[RewardConfig]) -> None:
        dimension = models[0].dimension
        forms = [_form(reward, dimension) for reward in rewards]
        choices = np.array(
            np.meshgrid(*[np.arange(len(model.weights)) for model in models], indexing="ij")
        ).reshape(len(models), -1)
        count, size = choices.shape[1], len(models) + len(rewards)
        self.constants = np.zeros((count, size))
        self.directions = np.zeros((size, dimension))
        self.centers = np.zeros((count, size, dimension))
        self.curvatures = np.zeros((count, size, dimension, dimension))
        for index, (model, choice) in enumerate(zip(models, choices, strict=True)):
            covariances = np.array(model.covariances)
            constants = np.log(model.weights) - 0.5 * np.linalg.slogdet(2.0 * math.pi * covariances)[1]
            self.constants[:, index] = constants[choice]
            self.centers[:, index] = np.array(model.means)[choice]
            self.curvatures[:, index] = np.linalg.inv(covariances)[choice]
        for index, (direction, curvature, center) in enumerate(forms, start=len(models)):
            self.directions[index] = direction
            self.curvatures[:, index] = curvature
            self.centers[:, index] = center
        self._pulls = self.directions + np.einsum("tfij,tfj->tfi", self.curvatures, self.centers)

    def at(self, theta: FloatArray) -> tuple[FloatArray, Gaussians]:
        """Log masses ``[T]`` of the products, nats, and the products themselves."""
        precisions: FloatArray = np.einsum("f,tfij->tij", theta, self.curvatures)
        covariances = np.linalg.inv(precisions).astype(np.float64)
        centers = np.einsum("tij,tj->ti", covariances, np.tensordot(theta, self._pulls, (0, 1)))
        peaks, _ = self.peaks(centers)
        log_dets = np.linalg.slogdet(2.0 * math.pi * covariances)[1]
        return peaks @ theta + 0.5 * log_dets, Gaussians(means=centers, covariances=covariances)

    def peaks(self, centers: FloatArray) -> tuple[FloatArray, FloatArray]:
        """φ ``[T, F]`` and ∇φ ``[T, F, d]`` at one point ``[T, d]`` for each choice."""
        offsets = centers[:, None] - self.centers
        bent = np.einsum("tfij,tfj->tfi", self.curvatures, offsets)
        values = self.constants + centers @ self.directions.T
        return values - 0.5 * np.einsum("tfi,tfi->tf", offsets, bent), self.directions - bent


class GaussianProduct:
    """Step 1: in closed form and in any dimension."""

    def __init__(self, models: Sequence[MixtureConfig], rewards: Sequence[RewardConfig]) -> None:
        """Prepare; every model is a single Gaussian."""
        self._models = len(models)
        self._products = _Products(models, rewards)

    def moments(self, weights: FloatArray, tilt: FloatArray) -> PoolMoments:
        """See ``Pool``."""
        theta = np.concatenate([weights, tilt])
        log_masses, gaussians = self._products.at(theta)
        peaks, slopes = self._products.peaks(gaussians.means)
        covariance = gaussians.covariances[0]
        products = self._products.curvatures[0] @ covariance  # A_f P⁻¹, [F, d, d]
        means = peaks[0] - 0.5 * np.einsum("fii->f", products)
        curvature = slopes[0] @ covariance @ slopes[0].T
        curvature += 0.5 * np.einsum("fij,gji->fg", products, products)
        return PoolMoments(
            kl=float(theta @ means - log_masses[0]) - means[: self._models],
            rewards=means[self._models :],
            curvature=curvature,
            mean=gaussians.means[0],
            covariance=covariance,
        )

    def finer(self) -> None:
        """Nothing is finer."""


class MixtureProduct:
    """Step 2: products of mixtures in one or two dimensions."""

    def __init__(
        self, models: Sequence[MixtureConfig], rewards: Sequence[RewardConfig], fineness: float
    ) -> None:
        """Prepare; ``fineness`` is the spacing in standard deviations of the narrowest Gaussian."""
        self._models, self._rewards, self._fineness = models, rewards, fineness
        self._products = _Products(models, rewards)
        self._details = _components(models)
        self._grid: Grid | None = None
        self._features: FloatArray = np.empty((0, 0))

    def moments(self, weights: FloatArray, tilt: FloatArray) -> PoolMoments:
        """See ``Pool``."""
        theta = np.concatenate([weights, tilt])
        grid, features = self._on_grid(theta)
        exponents = features @ theta
        top = exponents.max()
        masses = np.exp(exponents - top)
        log_partition = float(top + np.log(masses.sum())) + grid.log_cell
        masses /= masses.sum()
        means = masses @ features
        features = features - means
        mean = masses @ grid.points
        offsets = grid.points - mean
        count = len(self._models)
        return PoolMoments(
            kl=float(theta @ means - log_partition) - means[:count],
            rewards=means[count:],
            curvature=(masses[:, None] * features).T @ features,
            mean=mean,
            covariance=(masses[:, None] * offsets).T @ offsets,
        )

    def finer(self) -> "MixtureProduct":
        """See ``Pool``."""
        return MixtureProduct(self._models, self._rewards, 0.5 * self._fineness)

    def _on_grid(self, theta: FloatArray) -> tuple[Grid, FloatArray]:
        """A grid that fits θ, and φ ``[n, F]`` on it; the last one as long as it serves."""
        log_masses, products = self._products.at(theta)
        heavy = log_masses > log_masses.max() - 36.0 - math.log(len(log_masses))
        inside = Gaussians(means=products.means[heavy], covariances=products.covariances[heavy])
        if self._grid is None or not self._grid.serves(inside, self._details):
            self._grid = Grid(inside, self._details, self._fineness)
            points = self._grid.points
            self._features = np.stack(
                [log_density(points, np.log(model.weights), _components([model])) for model in self._models]
                + [_reward(points, reward) for reward in self._rewards],
                axis=1,
            )
        return self._grid, self._features


class MixtureSum:
    """Step 3: sums of mixtures in one or two dimensions; there are no rewards."""

    def __init__(self, models: Sequence[MixtureConfig], fineness: float) -> None:
        """Prepare; ``fineness`` is the spacing in standard deviations of the narrowest component."""
        self._models, self._fineness = models, fineness
        everything = _components(models)
        grid = Grid(everything, everything, fineness)
        logs = np.stack(
            [log_density(grid.points, np.log(model.weights), _components([model])) for model in models],
            axis=1,
        )
        # [n, m], without the corners of the box, where nothing is.
        self._logs = logs[logs.max(axis=1) + grid.log_cell > -50.0]
        self._log_cell = grid.log_cell
        self._masses = np.exp(self._logs + self._log_cell)

    def moments(self, weights: FloatArray, tilt: FloatArray) -> PoolMoments:
        """See ``Pool``."""
        assert not len(tilt), "sums have no rewards"
        present = weights > 0
        exponents = self._logs[:, present] + np.log(weights[present])
        top = exponents.max(axis=1)
        log_sum = top + np.log(np.exp(exponents - top[:, None]).sum(axis=1))
        # Where a model of weight 0 is alone, its q² / p is beyond any double: the caller does not need it.
        halves = np.exp(np.minimum(self._logs + 0.5 * (self._log_cell - log_sum[:, None]), 100.0))
        moments = [_mixture_moments(model) for model in self._models]
        mean = weights @ np.array([first for first, _ in moments])
        second = np.tensordot(weights, np.array([second for _, second in moments]), 1)
        return PoolMoments(
            kl=np.einsum("nm,nm->m", self._masses, self._logs - log_sum[:, None]),
            rewards=np.empty(0),
            curvature=halves.T @ halves,
            mean=mean,
            covariance=second - np.outer(mean, mean),
        )

    def finer(self) -> "MixtureSum":
        """See ``Pool``."""
        return MixtureSum(self._models, 0.5 * self._fineness)


def _components(models: Sequence[MixtureConfig]) -> Gaussians:
    """All components of some models."""
    return Gaussians(
        means=np.concatenate([np.array(model.means) for model in models]),
        covariances=np.concatenate([np.array(model.covariances) for model in models]),
    )


def _mixture_moments(model: MixtureConfig) -> tuple[FloatArray, FloatArray]:
    """Mean ``[d]`` and second moment ``[d, d]`` of a mixture."""
    weights, means = np.array(model.weights), np.array(model.means)
    second = np.array(model.covariances) + means[:, :, None] * means[:, None, :]
    return weights @ means, np.tensordot(weights, second, 1)


def _form(reward: RewardConfig, dimension: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Direction ``[d]``, curvature ``[d, d]`` and center ``[d]`` of a reward that is not constant."""
    form = reward_form(reward, dimension)
    if not form[0].any() and not form[1].any():
        raise ValueError(f"reward {reward.name!r} is constant: no threshold can be set on it")
    return form


def _reward(points: FloatArray, reward: RewardConfig) -> FloatArray:
    """A reward ``[n]`` at points ``[n, d]``."""
    direction, curvature, center = _form(reward, points.shape[1])
    offsets = points - center
    values: FloatArray = points @ direction - 0.5 * np.einsum("ni,ij,nj->n", offsets, curvature, offsets)
    return values
