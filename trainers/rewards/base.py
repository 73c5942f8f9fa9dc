"""What a reward is."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from trainers import registry
from trainers.config import PromptsConfig, RewardConfig
from trainers.failures import Unscored
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


def versions(rewards: Mapping[str, Reward]) -> dict[str, str]:
    """Return the versions of those rewards that servers give, by name."""
    return {name: reward.version for name, reward in rewards.items() if hasattr(reward, "version")}


def must_be_same(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Check the versions of rewards that servers give against those with which a sweep began.

    Raises:
        Unscored: one has become another.
    """
    for name, version in now.items():
        if before.get(name, version) != version:
            raise Unscored(
                f"reward {name!r}: its server has version {version!r}, and the sweep began with {before[name]!r}; "
                "scores of two versions do not compare. Serve the first one again, or begin another sweep (--name)"
            )


def build_reward(config: RewardConfig, prompts: PromptsConfig | None = None) -> Reward:
    """Return the reward that the config names.

    Args:
        config: Of the reward.
        prompts: Of the trial: what their files say of them reaches a reward that has a method ``describe``.

    Raises:
        ValueError: unknown kind, parameters that its class does not take, or a server that does not answer.
    """
    cls: Any = registry.load(registry.REWARDS, config.kind)
    commits = {config.parameters[key]: commit for key, commit in config.revisions.items()}
    try:
        with at_commits(commits):
            reward: Reward = cls(**config.parameters)
    except TypeError as error:
        raise ValueError(f"reward {config.name!r} ({config.kind}): {error}") from error
    if prompts is not None and hasattr(reward, "describe"):
        reward.describe(prompts)
    return reward
