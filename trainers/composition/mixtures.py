"""Compositions of mixtures, measured by sampling.

``Product`` (AND) and ``Sum`` (OR) measure the same things at given weights, so one solver serves both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.composition.measure import Measure, Measured
from trainers.composition.state import Ascent
from trainers.config import MixtureConfig, TrialConfig
from trainers.diffusion.feynman_kac import FeynmanKac, WeightedScore, systematic_resample
from trainers.diffusion.hamiltonian import AnnealedHmc, AnnealedUha
from trainers.diffusion.langevin import AnnealedMala, AnnealedUla
from trainers.diffusion.noised import CommonCoordinates, NoisedMixture, common_coordinates
from trainers.diffusion.pointwise_kl import ENERGY, jackknife
from trainers.diffusion.products import ProductSampler
from trainers.diffusion.schedule import cosine_alpha_bars
from trainers.rewards.base import Reward, build_reward
from trainers.trial_io import TrialIO
from trainers.types import FloatArray

_GROUPS = 16
_EXACT_FACTOR = 8  # samples of a sum cost next to nothing
SAMPLERS: dict[str, Any] = {
    "fkc": lambda: FeynmanKac(groups=_GROUPS),
    "ula": AnnealedUla,
    "mala": AnnealedMala,
    "uha": AnnealedUha,
    "hmc": AnnealedHmc,
    "score": WeightedScore,
}
"""Samplers of products; ``score`` is the uncorrected baseline."""

MONTE_CARLO = "monte_carlo"

APART = 200.0
"""Nats of the least KL beyond which models count as disjoint: a sample of one has odds of e^-200 in the other."""


@dataclass(frozen=True)
class Mixtures:
    """Mixtures that are composed."""

    measure: Measure

    @classmethod
    def build(cls, config: TrialConfig) -> "Mixtures":
        """Return those of a configuration, their products sampled over its steps as noise levels."""
        composition = config.model.composition
        assert composition is not None, "a composition"
        mixtures = [model.exact for model in composition.models]
        rewards = [build_reward(reward) for reward in config.rewards]
        if composition.direction == "forward":
            return cls(Sum(mixtures, rewards))
        sampler = SAMPLERS[composition.sampler]()
        return cls(Product(mixtures, rewards, sampler=sampler, levels=config.sampling.steps))

    def extras(
        self,
        weights: FloatArray,  # noqa: ARG002 - the protocol's signature
        measured: Measured,  # noqa: ARG002 - the same
        io: TrialIO,  # noqa: ARG002 - the same
        state: Ascent,  # noqa: ARG002 - the same
    ) -> dict[str, Any]:
        """Return nothing."""
        return {}


class _Models:
    """Densities of the mixtures in common coordinates, and rewards of their samples."""

    def __init__(self, mixtures: Sequence[MixtureConfig], rewards: Sequence[Reward], levels: int) -> None:
        self.coordinates: CommonCoordinates = common_coordinates(mixtures)
        self.white = [self.coordinates.whiten(mixture) for mixture in mixtures]
        grid = cosine_alpha_bars(levels)
        self.models = [NoisedMixture(mixture, alpha_bars=grid) for mixture in self.white]
        self.rewards = rewards

    def log_densities(self, states: Tensor) -> Tensor:
        """Return ``log q_i``, ``[m, n]``."""
        return torch.stack([model.log_density(0, states) for model in self.models])

    def scores(self, states: Tensor) -> Tensor:
        """Return every reward, ``[R, n]``."""
        samples = self.coordinates.decode(states)
        if not self.rewards:
            return samples.new_zeros(0, len(samples))
        return torch.stack([reward(samples).to(samples.dtype) for reward in self.rewards])


class Product:
    """``p ∝ Π q_i^{λ_i} exp(μ·r)``: the AND of the models."""

    estimator, apart = ENERGY, APART

    def __init__(
        self,
        mixtures: Sequence[MixtureConfig],
        rewards: Sequence[Reward],
        *,
        sampler: ProductSampler,
        levels: int,
    ) -> None:
        """Take the sampler of ``Π q_i^{λ_i}``; the tilt by rewards is a weight on its samples."""
        self._models = _Models(mixtures, rewards, levels)
        self._sampler = sampler
        self._partition = sampler if isinstance(sampler, FeynmanKac) else FeynmanKac(groups=_GROUPS)

    def __call__(
        self,
        weights: FloatArray,
        tilt: FloatArray,
        count: int,
        seed: int,
        *,
        held_out: bool = False,  # noqa: ARG002 - mixtures have no prompts
    ) -> Measured:
        """Measure with ``count`` samples, rounded up to whole groups."""
        count = -(-count // _GROUPS) * _GROUPS
        models = self._models.models
        generator = torch.Generator().manual_seed(seed)
        drawn = self._sampler(models, weights, count, generator)
        partition = drawn.log_partition
        if partition is None:
            partition = self._partition(models, weights, count, generator).log_partition
        assert partition is not None, "Feynman-Kac weights know their sum"
        logs, scores = self._models.log_densities(drawn.samples), self._models.scores(drawn.samples)
        tilted = drawn.log_weights + logs.new_tensor(tilt) @ scores
        added = float(torch.logsumexp(tilted, dim=0))  # log E exp(μ·r)
        shares = torch.softmax(tilted, dim=0)
        energy = logs.new_tensor(weights) @ logs + logs.new_tensor(tilt) @ scores
        gaps = energy - logs  # [m, n]
        log_partition = partition[0] + added
        kl = (gaps @ shares).numpy() - log_partition
        features = torch.cat([logs, scores])
        centred = features - (features @ shares)[:, None]
        effective = float(1 / shares.square().sum()) * drawn.effective_samples / count
        if drawn.groups > 1:
            kl_error = jackknife(gaps, shares, drawn.groups, with_partition=True).numpy()
            reward_error = jackknife(scores, shares, drawn.groups, with_partition=False).numpy()
        else:
            spread = (shares * centred.square()).sum(dim=1).sqrt().numpy() / np.sqrt(max(effective, 1.0))
            kl_error, reward_error = np.hypot(spread[: len(kl)], partition[1]), spread[len(kl) :]
        kept = systematic_resample(torch.log(shares)[None], generator)[0]
        return Measured(
            kl=kl,
            kl_error=kl_error,
            rewards=(scores @ shares).numpy(),
            reward_error=reward_error,
            curvature=((shares * centred) @ centred.T).numpy(),
            dual=-log_partition,
            scores=scores[:, kept].numpy(),
            degrees=_GROUPS - 1,  # of the errors of the samples, or of log Z
            effective_samples=effective,
            acceptance=None if drawn.acceptance is None else float(drawn.acceptance.mean()),
            evaluations=drawn.evaluations,
        )


class Sum:
    """``p = Σ λ_i q_i``: the OR of the models, sampled exactly."""

    estimator, apart = MONTE_CARLO, APART

    def __init__(self, mixtures: Sequence[MixtureConfig], rewards: Sequence[Reward]) -> None:
        """Take the models."""
        self._models = _Models(mixtures, rewards, levels=1)

    def __call__(
        self,
        weights: FloatArray,
        tilt: FloatArray,
        count: int,
        seed: int,
        *,
        held_out: bool = False,  # noqa: ARG002 - mixtures have no prompts
    ) -> Measured:
        """Measure with several times ``count`` samples, as many of each model."""
        assert not tilt.any(), "a sum of models is not tilted"
        models = self._models
        each = _EXACT_FACTOR * -(-count // len(models.white))
        rng = np.random.default_rng(seed)
        log_weights = torch.log(torch.tensor(np.maximum(weights, 1e-300)))
        means, errors, rewards, reward_variances, scores, apart = [], [], [], [], [], []
        curvature = np.zeros((len(weights), len(weights)))
        for index, mixture in enumerate(models.white):
            states = torch.tensor(_draw(mixture, each, rng))
            logs = models.log_densities(states)
            total = torch.logsumexp(logs + log_weights[:, None], dim=0)  # log p
            gaps = (logs[index] - total).numpy()
            means.append(gaps.mean())
            errors.append(gaps.std(ddof=1) / np.sqrt(each))
            ratios = torch.exp(logs - total).numpy()  # q_i / p
            curvature += weights[index] * ratios @ ratios.T / each
            found = models.scores(states).numpy()
            rewards.append(found.mean(axis=1))
            reward_variances.append(found.var(axis=1, ddof=1) / each)
            scores.append(found)
            apart.append((total - logs).numpy())  # log p / q_i, [m, n]
        picked = [
            (i, rng.integers(each)) for i in rng.choice(len(weights), size=count, p=weights / weights.sum())
        ]
        kl = np.array(means)
        whole = np.zeros((len(weights) + len(rewards[0]),) * 2)
        whole[: len(weights), : len(weights)] = curvature
        return Measured(
            kl=kl,
            kl_error=np.array(errors),
            rewards=weights @ np.stack(rewards),
            reward_error=np.sqrt(weights**2 @ np.stack(reward_variances)),
            curvature=whole,
            dual=float(weights @ kl),
            scores=np.stack([scores[i][:, j] for i, j in picked], axis=1),
            log_ratio=np.stack([apart[i][:, j] for i, j in picked], axis=1),
            degrees=each - 1,
            effective_samples=float(count),
            acceptance=None,
            evaluations=0.0,
        )


def _draw(mixture: MixtureConfig, count: int, rng: np.random.Generator) -> FloatArray:
    """Draw ``[count, d]`` samples of a mixture."""
    weights = np.array(mixture.weights) / np.sum(mixture.weights)
    picked = rng.choice(len(weights), size=count, p=weights)
    roots = np.linalg.cholesky(np.array(mixture.covariances))
    noise = rng.standard_normal((count, mixture.dimension))
    samples: FloatArray = np.array(mixture.means)[picked] + np.einsum("nij,nj->ni", roots[picked], noise)
    return samples
