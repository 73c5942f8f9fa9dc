"""Densities that a diffusion has noised: their scores at every level, and exact ones for Gaussian mixtures.

Symbols: ``x_0`` a clean sample, ``x_t = √ᾱ x_0 + √(1 − ᾱ) ε`` its noised state, ``s = ∇ log q_t`` the score of the
noised density ``q_t``. Level 0 is the cleanest of the schedule, level K the noisiest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from trainers.config import MixtureConfig
from trainers.types import FloatArray


class NoisedDensity(Protocol):
    """What a sampler of products asks of a constituent. A noise prediction ``ε`` is the score ``−ε / √(1 − ᾱ)``."""

    @property
    def alpha_bars(self) -> FloatArray:
        """``ᾱ`` of every level, ``[K + 1]``, clean to noisy, strictly falling inside (0, 1)."""
        ...

    @property
    def dimension(self) -> int:
        """Number of coordinates ``d``."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the states."""
        ...

    @property
    def has_density(self) -> bool:
        """Whether ``log_density`` may be called: a diffusion network has only scores."""
        ...

    def score(self, level: int, x: Tensor) -> Tensor:
        """Return ``∇ log q_t``, ``[n, d]``, at states ``[n, d]``."""
        ...

    def log_density(self, level: int, x: Tensor) -> Tensor:
        """Return ``log q_t``, ``[n]``, nats, at states ``[n, d]``."""
        ...


class NoisedMixture:
    """A Gaussian mixture under the noise: component means ``√ᾱ m_c``, covariances ``ᾱ S_c + (1 − ᾱ) I``.

    ``evaluations`` counts the states whose score was asked for, as a network would be billed.
    """

    has_density = True

    def __init__(
        self, config: MixtureConfig, *, alpha_bars: FloatArray, dtype: torch.dtype = torch.float64
    ) -> None:
        """Tabulate every level.

        Args:
            config: The mixture in the coordinates of the diffusion: see ``common_coordinates``.
            alpha_bars: ``[K + 1]``, clean to noisy.
            dtype: Of states, scores and densities.
        """
        self.alpha_bars, self.dimension, self.dtype = alpha_bars, config.dimension, dtype
        self.evaluations = 0
        weights = np.array(config.weights) / np.sum(config.weights)
        alpha = alpha_bars[:, None, None, None]
        covariances = alpha * np.array(config.covariances) + (1 - alpha) * np.eye(config.dimension)
        precision = np.linalg.inv(covariances)  # [K + 1, C, d, d]
        log_weight = (
            np.log(weights)
            + 0.5 * np.linalg.slogdet(precision)[1]
            - 0.5 * config.dimension * np.log(2 * np.pi)
        )
        self._centers = torch.tensor(np.sqrt(alpha[..., 0]) * np.array(config.means), dtype=dtype)
        self._precision = torch.tensor(precision, dtype=dtype)
        self._log_weight = torch.tensor(log_weight, dtype=dtype)  # [K + 1, C]

    def _terms(self, level: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return log densities ``[n, C]`` and scores ``[n, C, d]`` of the weighted components."""
        offset = x[:, None] - self._centers[level]
        pull = -torch.einsum("cij,ncj->nci", self._precision[level], offset)
        return self._log_weight[level] + 0.5 * (offset * pull).sum(dim=2), pull

    def score(self, level: int, x: Tensor) -> Tensor:
        """Return ``∇ log q_t``, ``[n, d]``."""
        self.evaluations += len(x)
        logs, pull = self._terms(level, x)
        return (torch.softmax(logs, dim=1)[:, :, None] * pull).sum(dim=1)

    def log_density(self, level: int, x: Tensor) -> Tensor:
        """Return ``log q_t``, ``[n]``, nats."""
        return torch.logsumexp(self._terms(level, x)[0], dim=1)


@dataclass(frozen=True, kw_only=True)
class CommonCoordinates:
    """An affine map ``x = shift + scale @ z``, one for all constituents.

    It keeps every KL, and ``log Z(λ)`` where ``Σ λ = 1`` (in ``z`` it is larger by ``(Σ λ − 1) log |det scale|``).
    """

    shift: FloatArray
    """``[d]``."""
    scale: FloatArray
    """``[d, d]``, lower triangular."""

    def whiten(self, config: MixtureConfig) -> MixtureConfig:
        """Return the mixture of ``z``."""
        inverse = np.linalg.inv(self.scale)
        means = (np.array(config.means) - self.shift) @ inverse.T
        covariances = inverse @ np.array(config.covariances) @ inverse.T
        return MixtureConfig(
            weights=config.weights,
            means=tuple(tuple(mean) for mean in means.tolist()),
            covariances=tuple(tuple(tuple(row) for row in rows) for rows in covariances.tolist()),
        )

    def encode(self, samples: Tensor) -> Tensor:
        """Map samples ``[n, d]`` to ``z``."""
        scale, shift = samples.new_tensor(self.scale), samples.new_tensor(self.shift)
        solved: Tensor = torch.linalg.solve_triangular(scale, (samples - shift).T, upper=False)
        return solved.T

    def decode(self, states: Tensor) -> Tensor:
        """Map ``z``, ``[n, d]``, to samples."""
        return states @ states.new_tensor(self.scale).T + states.new_tensor(self.shift)


def common_coordinates(configs: Sequence[MixtureConfig]) -> CommonCoordinates:
    """Return the coordinates in which the equal mixture of all constituents has mean 0 and covariance I.

    Raises:
        ValueError: There is no mixture, or they differ in dimension.
    """
    dimensions = sorted({config.dimension for config in configs})
    if len(dimensions) != 1:
        raise ValueError(f"constituents must share one dimension, got {dimensions or 'no constituent'}")
    weights = np.concatenate([np.array(c.weights) / np.sum(c.weights) for c in configs]) / len(configs)
    means = np.concatenate([np.array(c.means) for c in configs])
    covariances = np.concatenate([np.array(c.covariances) for c in configs])
    shift = weights @ means
    spread = means - shift
    total = np.einsum("c,cij->ij", weights, covariances + np.einsum("ci,cj->cij", spread, spread))
    return CommonCoordinates(shift=shift, scale=np.linalg.cholesky(total))
