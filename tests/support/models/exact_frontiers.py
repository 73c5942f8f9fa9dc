"""Exact problems whose optima stand in for finished trials: what a search finds is then the search's own doing."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.frontier.bounds.bounds import Box, FrontierPoint
from orchestrator.frontier.problems.exact import ExactProblem
from trainers.config import MixtureConfig, RewardConfig

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ExactFrontier:
    """A problem in arrays, rewards in its own order."""

    problem: ExactProblem
    mean: FloatArray
    """``[m]``"""
    std: FloatArray
    """``[m]``"""

    @classmethod
    def of(cls, problem: ExactProblem) -> "ExactFrontier":
        statistics = problem.baseline().rewards.values()
        return cls(
            problem=problem,
            mean=np.array([reward.mean for reward in statistics]),
            std=np.array([reward.std for reward in statistics]),
        )

    @property
    def pretrained(self) -> FrontierPoint:
        return FrontierPoint.pretrained(self.mean)

    def tilted(self, multipliers: FloatArray) -> FrontierPoint:
        """The optimum at fixed weights: ``q exp(λ'r) / Z`` itself, with its own rewards and KL."""
        named = dict(zip(self.problem.names, multipliers.tolist(), strict=True))
        rewards = np.array(list(self.problem.tilted_means(named).values()))
        kl = float(multipliers @ rewards) - self.problem.log_partition(named)
        return FrontierPoint(rewards=rewards, kl=kl, multipliers=multipliers)

    def solved(self, thresholds: FloatArray) -> FrontierPoint:
        """A finished constrained trial."""
        optimum = self.problem.least_kl(dict(zip(self.problem.names, thresholds.tolist(), strict=True)))
        assert optimum.reachable
        return self.tilted(np.maximum([optimum.tilt[name] for name in self.problem.names], 0.0))

    def stopped(self, thresholds: FloatArray, most: float) -> FrontierPoint:
        """A trial that pulls towards its thresholds until its KL is ``most`` nats, or until it is there."""
        if self.least_kl(thresholds[None])[0] <= most:
            return self.solved(thresholds)
        inside, outside = self.mean, thresholds
        for _ in range(25):
            middle = 0.5 * (inside + outside)
            cheap = self.least_kl(middle[None])[0] <= most
            inside, outside = (middle, outside) if cheap else (inside, middle)
        return self.solved(inside)

    def least_kl(self, thresholds: FloatArray) -> FloatArray:
        """P, nats: ``[v, m]`` to ``[v]``."""
        return np.array(
            [
                self.problem.least_kl(dict(zip(self.problem.names, row, strict=True))).kl
                for row in thresholds.tolist()
            ]
        )


def random_frontier(seed: int, rewards: int) -> ExactFrontier:
    """A mixture of one to four Gaussians with linear and quadratic rewards in turn."""
    rng = np.random.default_rng(seed)
    dimension = max(2, rewards // 2 + 1)
    count = int(rng.integers(1, 5))
    roots = 0.45 * rng.normal(size=(count, dimension, dimension))
    covariances = roots @ np.swapaxes(roots, 1, 2) + 0.08 * np.eye(dimension)
    mixture = MixtureConfig(
        weights=tuple(rng.dirichlet(np.full(count, 3.0)).tolist()),
        means=tuple(map(tuple, rng.uniform(-2, 2, (count, dimension)).tolist())),
        covariances=tuple(tuple(map(tuple, matrix)) for matrix in covariances.tolist()),
    )
    configs = []
    for index in range(rewards):
        if index % 2:
            center = tuple(rng.uniform(-1.5, 1.5, dimension).tolist())
            parameters = {"center": center, "scale": float(rng.uniform(0.2, 0.8))}
            configs.append(RewardConfig(name=f"near{index}", kind="quadratic", parameters=parameters))
        else:
            direction = rng.normal(size=dimension)
            parameters = {"direction": tuple((direction / np.linalg.norm(direction)).tolist())}
            configs.append(RewardConfig(name=f"along{index}", kind="linear", parameters=parameters))
    return ExactFrontier.of(ExactProblem(mixture, configs))


def reachable_box(
    seed: int, rewards: int, *, least: float = 1.0, most: float = 3.0
) -> tuple[ExactFrontier, Box]:
    """A problem, and thresholds from the pretrained means to rewards reached at ``least`` to ``most`` nats."""
    for attempt in range(10_000):
        frontier = random_frontier(10_000 * seed + attempt, rewards)
        prices = np.random.default_rng(10_000 * seed + attempt).uniform(0, 4, rewards) / frontier.std
        corner = frontier.tilted(prices)
        if least <= corner.kl <= most and (corner.rewards > frontier.mean + 0.2 * frontier.std).all():
            return frontier, Box(low=frontier.mean, high=corner.rewards, spread=frontier.std)
    raise AssertionError("no such problem")
