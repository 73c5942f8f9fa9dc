"""What a reward is."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from trainers import registry
from trainers.config import RewardConfig
from trainers.rewards.revisions import at_commits


class Reward(Protocol):
    """A score; higher is better.

    Built as ``Class(**parameters)``. The value of a sample never depends on the rest of the batch. A class whose scores
    have no gradients says so by the attribute ``differentiable = False``, a plain constant in its body: plans read it
    without importing the class.
    """

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Score samples ``[batch, …]`` (images in [0, 1]); returns ``[batch]`` in float32, with its gradients."""


def differentiable(reward: Reward) -> bool:
    """Return whether a reward has gradients to its samples; one that does not say so has."""
    return bool(getattr(reward, "differentiable", True))


def build_reward(config: RewardConfig) -> Reward:
    """Return the reward that the config names.

    Raises:
        ValueError: unknown kind, or parameters that its class does not take.
    """
    cls: Any = registry.load(registry.REWARDS, config.kind)
    commits = {config.parameters[key]: commit for key, commit in config.revisions.items()}
    try:
        with at_commits(commits):
            reward: Reward = cls(**config.parameters)
    except TypeError as error:
        raise ValueError(f"reward {config.name!r} ({config.kind}): {error}") from error
    return reward
