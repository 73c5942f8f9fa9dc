"""Every registered extension passes the contract that ships in ``trainers.testing``.

A new reward gets one line in ``REWARDS`` with parameters to build it from; dual optimisers and primal estimators
are found by themselves.
"""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from trainers import registry
from trainers.config import DualConfig
from trainers.duality.optimizers import DualAscent
from trainers.primal.base import PrimalEstimate
from trainers.primal.log_variance import LogVariance
from trainers.primal.reward_backprop import RewardBackprop
from trainers.testing import check_dual_optimizer, check_primal_estimator, check_reward

REWARDS = {
    "linear": {"direction": (1.0, -2.0)},
    "quadratic": {"center": (0.3, 0.1), "scale": 0.7},
}


def test_every_reward_is_in_the_list() -> None:
    assert set(REWARDS) == set(registry.registered(registry.REWARDS))


@pytest.mark.parametrize("kind", REWARDS)
def test_reward(kind: str) -> None:
    reward = registry.load(registry.REWARDS, kind)(**REWARDS[kind])
    check_reward(reward, torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("kind", sorted(registry.registered(registry.DUAL_OPTIMIZERS)))
def test_dual_optimizer(kind: str) -> None:
    check_dual_optimizer(registry.load(registry.DUAL_OPTIMIZERS, kind))


@pytest.mark.parametrize("kind", sorted(registry.registered(registry.PRIMAL_ESTIMATORS)))
def test_primal_estimator(kind: str) -> None:
    check_primal_estimator(registry.load(registry.PRIMAL_ESTIMATORS, kind)())


# The contracts themselves: each broken rule is found.


class BatchNormalised:
    def __call__(self, samples: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        scores = samples.sum(dim=1)
        return scores - scores.mean() + scores.square()


class Unshaped:
    def __call__(self, samples: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        return samples.sum(dim=1, keepdim=True)


class Double:
    def __call__(self, samples: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        return samples.sum(dim=1).double()


class Flat:
    def __call__(self, samples: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        return 0.0 * samples.sum(dim=1)


class Backwards(torch.autograd.Function):
    @staticmethod
    def forward(_: object, samples: torch.Tensor) -> torch.Tensor:
        return samples.sum(dim=1)

    @staticmethod
    def backward(_: object, gradient: torch.Tensor) -> torch.Tensor:
        return -gradient[:, None].expand(-1, 2)


class WrongSlope:
    def __call__(self, samples: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        return Backwards.apply(samples)


@pytest.mark.parametrize(
    ("reward", "rule"),
    [
        (BatchNormalised(), "depends on its sample only"),
        (Unshaped(), "one score per sample"),
        (Double(), "float32"),
        (Flat(), "has a gradient"),
        (WrongSlope(), "raises the scores"),
    ],
)
def test_a_broken_reward_is_found(reward: object, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_reward(reward, torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))


class Unprojected(DualAscent):
    def step(self, violations: np.ndarray, rate: float = 1.0) -> None:
        self.multipliers = self.multipliers + rate * violations


class Reversed(DualAscent):
    def _updated(self, violations: np.ndarray, rate: float) -> np.ndarray:
        return self.multipliers - rate * violations


class Forgetful(DualAscent):
    """Momentum that is not saved."""

    velocity = 0.0

    def _updated(self, violations: np.ndarray, rate: float) -> np.ndarray:
        self.velocity = 0.9 * self.velocity + violations
        return self.multipliers + 0.1 * self.velocity


@pytest.mark.parametrize(
    ("cls", "rule"),
    [(Unprojected, ">= 0"), (Reversed, "raises its multiplier"), (Forgetful, "bit for bit")],
)
def test_a_broken_dual_optimizer_is_found(cls: type[DualAscent], rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_dual_optimizer(cls, DualConfig())


class Ascending(RewardBackprop):
    def __call__(self, *args: object) -> PrimalEstimate:
        estimate = super().__call__(*args)
        return PrimalEstimate(loss=-estimate.loss, path_kl=estimate.path_kl, rewards=estimate.rewards)


class OwnBaseline(LogVariance):
    """Ignores the other workers' mean."""

    def __call__(self, *args: object) -> PrimalEstimate:
        return super().__call__(*args[:-1], torch.Tensor.detach)


class Attached(RewardBackprop):
    def __call__(self, *args: object) -> PrimalEstimate:
        estimate = super().__call__(*args)
        return PrimalEstimate(
            loss=estimate.loss, path_kl=estimate.path_kl.requires_grad_(), rewards=estimate.rewards
        )


@pytest.mark.parametrize(
    ("estimator", "rule"),
    [
        (Ascending(), "lowers the Lagrangian"),
        (OwnBaseline(), "gradient of the whole"),
        (Attached(), "detached"),
    ],
)
def test_a_broken_estimator_is_found(estimator: RewardBackprop, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_primal_estimator(estimator)
