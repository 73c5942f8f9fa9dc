"""What a reward is."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from trainers import registry
from trainers.config import PromptsConfig, RewardConfig
from trainers.failures import Unscored
from trainers.rewards.grouped import Grouped
from trainers.rewards.revisions import at_commits
from trainers.types import FloatArray


class Reward(Protocol):
    """A score; higher is better.

    Built as ``Class(**parameters)``. The value of a sample never depends on the rest of the batch. A class whose scores
    have no gradients says so by the attribute ``differentiable = False``, a plain constant in its body: plans read it
    without importing the class. One whose scores cannot always be had gives NaN for those, and says by the attribute
    ``missing`` which share of them may be so; of any other a NaN is an error. One that knows how noisy its scores are
    says their standard errors after each call by the attribute ``noise``, ``[batch]``.
    """

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Score samples ``[batch, …]`` (images in [0, 1]); returns ``[batch]`` in float32, with its gradients."""


def differentiable(reward: Reward) -> bool:
    """Return whether a reward has gradients to its samples; one that does not say so has."""
    return bool(getattr(reward, "differentiable", True))


def most_missing(reward: Reward) -> float:
    """Return the share of scores that may be missing, which then are NaN; 0 for a reward that always has one."""
    return float(getattr(reward, "missing", 0.0))


def noise_of(reward: Reward, count: int) -> Tensor:
    """Return the standard errors of the ``count`` scores that a reward gave last, ``[count]``; NaN where not known."""
    found = getattr(reward, "noise", None)
    return torch.full((count,), torch.nan) if found is None else found


def gaps_of(rewards: Mapping[str, Reward]) -> frozenset[str]:
    """Return the rewards that have no score of some samples: it may be missing, or they are of other prompts."""
    return frozenset(
        n for n, reward in rewards.items() if most_missing(reward) > 0 or isinstance(reward, Grouped)
    )


def refuse_missing(
    rewards: Mapping[str, Reward],
    scores: Mapping[str, FloatArray],
    what: str,
    prompts: Sequence[str] | None = None,
) -> None:
    """Check that not too many scores ``[n]`` are missing, of those that were asked for.

    Raises:
        Unscored: a larger share of one reward's than may be.
    """
    for name, reward in rewards.items():
        there = reward.asked(prompts).numpy() if isinstance(reward, Grouped) else slice(None)
        asked = scores[name][there]
        allowed, gone = most_missing(reward), int(np.isnan(asked).sum())
        if allowed > 0 and gone > allowed * len(asked):
            raise Unscored(
                f"reward {name!r} has no score for {gone} of {len(asked)} images of {what}, and at most a share "
                f"of {allowed:g} may be missing{why_missing(reward)}"
            )


def missing_notes(rewards: Mapping[str, Reward]) -> list[str]:
    """Say of each reward how many scores that were asked for here could not be had."""
    counts = {name: getattr(reward, "counts", (0, 0)) for name, reward in rewards.items()}
    return [
        f"{gone} of {asked} scores of {name!r} could not be had, and are in no mean{why_missing(rewards[name])}"
        for name, (gone, asked) in counts.items()
        if gone
    ]


def why_missing(reward: Reward) -> str:
    """Return the last reason for a missing score, to be put behind a sentence; nothing where none was given."""
    why = getattr(reward, "why_missing", None)
    return f" ({why})" if why else ""


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


def build_rewards(configs: Iterable[RewardConfig], prompts: PromptsConfig | None = None) -> dict[str, Reward]:
    """Return rewards by name (``build_reward``)."""
    return {config.name: build_reward(config, prompts) for config in configs}


def build_reward(config: RewardConfig, prompts: PromptsConfig | None = None) -> Reward:
    """Return the reward that the config names.

    Args:
        config: Of the reward.
        prompts: Of the trial: what their files say of them reaches a reward that has a method ``describe``, and says
            which of them a reward of a group is of.

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
    if config.where is None or prompts is None:
        return reward
    return Grouped(reward, prompts.group(config.where))
