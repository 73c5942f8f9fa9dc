"""Samples of exact problems, pretrained and tilted: what a preview sees of a model whose frontier is known."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.frontier.paths import PathSamples
from orchestrator.frontier.problems.exact import ExactProblem
from trainers.config import MixtureConfig, RewardConfig

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SampledProblem:
    """A mixture with one linear and one quadratic reward."""

    mixture: MixtureConfig
    rewards: tuple[RewardConfig, ...]
    exact: ExactProblem
    mean: FloatArray
    """``[m]``, exact"""
    std: FloatArray
    """``[m]``, exact"""

    @classmethod
    def of(cls, mixture: MixtureConfig, rewards: Sequence[RewardConfig]) -> "SampledProblem":
        exact = ExactProblem(mixture, rewards)
        statistics = exact.baseline().rewards.values()
        return cls(
            mixture=mixture,
            rewards=tuple(rewards),
            exact=exact,
            mean=np.array([reward.mean for reward in statistics]),
            std=np.array([reward.std for reward in statistics]),
        )

    def draw(
        self, count: int, rng: np.random.Generator, tilt: Sequence[float] | FloatArray = ()
    ) -> FloatArray:
        """Rewards ``[count, m]`` of samples of q exp(λ'r) / Z; ``tilt`` is λ in nats per σ, nothing for q."""
        mixture = self._tilted(np.asarray(tilt) / self.std) if len(tilt) else self.mixture
        chosen = rng.choice(len(mixture.weights), count, p=np.array(mixture.weights) / sum(mixture.weights))
        roots = np.linalg.cholesky(np.array(mixture.covariances))
        noise = rng.normal(size=(count, mixture.dimension))
        points = np.array(mixture.means)[chosen] + np.einsum("nij,nj->ni", roots[chosen], noise)
        columns = []
        for reward in self.rewards:
            if reward.kind == "linear":
                columns.append(points @ np.array(reward.parameters["direction"]))
            else:
                offsets = points - np.array(reward.parameters["center"])
                columns.append(-reward.parameters["scale"] * (offsets**2).sum(axis=1))
        return np.stack(columns, axis=1)

    def path(self, count: int, rng: np.random.Generator, tilt: Sequence[float] | FloatArray) -> PathSamples:
        """The same with the density ratio of q exp(λ'r) / Z to q: paths of a single step, of an exact policy."""
        rewards = self.draw(count, rng, tilt)
        price = np.asarray(tilt) / self.std
        named = dict(zip(self.exact.names, price.tolist(), strict=True))
        return PathSamples(rewards=rewards, log_ratio=rewards @ price - self.exact.log_partition(named))

    def tilted_means(self, tilt: Sequence[float]) -> FloatArray:
        """Expected rewards ``[m]`` under a tilt in nats per σ: thresholds of which it is the price."""
        named = dict(zip(self.exact.names, np.asarray(tilt) / self.std, strict=True))
        return np.array(list(self.exact.tilted_means(named).values()))

    def least_kl(self, thresholds: FloatArray) -> float:
        """Exact, nats."""
        return self.exact.least_kl(dict(zip(self.exact.names, thresholds.tolist(), strict=True))).kl

    def _tilted(self, tilt: FloatArray) -> MixtureConfig:
        """Each Gaussian times exp(λ'r) by completing the square."""
        logs, means, covariances = [], [], []
        for weight, mean, covariance in zip(
            self.mixture.weights, self.mixture.means, self.mixture.covariances, strict=True
        ):
            precision = np.linalg.inv(covariance)
            pull, constant = precision @ mean, -0.5 * np.array(mean) @ precision @ mean
            for reward, multiplier in zip(self.rewards, tilt, strict=True):
                if reward.kind == "linear":
                    pull = pull + multiplier * np.array(reward.parameters["direction"])
                else:
                    center, scale = np.array(reward.parameters["center"]), reward.parameters["scale"]
                    precision = precision + 2.0 * multiplier * scale * np.eye(len(center))
                    pull = pull + 2.0 * multiplier * scale * center
                    constant -= multiplier * scale * center @ center
            narrow = np.linalg.inv(precision)
            determinants = np.linalg.slogdet(narrow)[1] - np.linalg.slogdet(np.array(covariance))[1]
            logs.append(math.log(weight) + constant + 0.5 * pull @ narrow @ pull + 0.5 * determinants)
            means.append(tuple((narrow @ pull).tolist()))
            covariances.append(tuple(map(tuple, (0.5 * (narrow + narrow.T)).tolist())))
        weights = np.exp(np.array(logs) - max(logs))
        return MixtureConfig(
            weights=tuple((weights / weights.sum()).tolist()),
            means=tuple(means),
            covariances=tuple(covariances),
        )


def random_problem(seed: int) -> SampledProblem:
    """One to four Gaussians in one to three dimensions."""
    rng = np.random.default_rng(seed)
    dimension, count = int(rng.integers(1, 4)), int(rng.integers(1, 5))
    roots = 0.45 * rng.normal(size=(count, dimension, dimension))
    covariances = roots @ np.swapaxes(roots, 1, 2) + 0.08 * np.eye(dimension)
    mixture = MixtureConfig(
        weights=tuple(rng.dirichlet(np.full(count, 3.0)).tolist()),
        means=tuple(map(tuple, rng.uniform(-2, 2, (count, dimension)).tolist())),
        covariances=tuple(tuple(map(tuple, matrix)) for matrix in covariances.tolist()),
    )
    direction = rng.normal(size=dimension)
    direction /= np.linalg.norm(direction)
    center = tuple(rng.uniform(-1.5, 1.5, dimension).tolist())
    scale = float(rng.uniform(0.2, 0.8))
    return SampledProblem.of(
        mixture,
        [
            RewardConfig(name="linear", kind="linear", parameters={"direction": tuple(direction.tolist())}),
            RewardConfig(name="quadratic", kind="quadratic", parameters={"center": center, "scale": scale}),
        ],
    )


def gaussian() -> SampledProblem:
    """One standard normal with r(x) = x: λ = b and P(b) = b² / 2."""
    mixture = MixtureConfig(weights=(1.0,), means=((0.0,),), covariances=(((1.0,),),))
    return SampledProblem.of(
        mixture, [RewardConfig(name="linear", kind="linear", parameters={"direction": (1.0,)})]
    )
