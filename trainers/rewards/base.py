"""What a reward is."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from trainers import registry
from trainers.config import RewardConfig
from trainers.rewards.revisions import at_commits


class Reward(Protocol):
    """A differentiable score; higher is better.

    Built as ``Class(**parameters)``. The value of a sample never depends on the rest of the batch.
    """

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Score samples ``[batch, …]`` (images in [0, 1]); returns ``[batch]`` in float32, with gradients."""


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
