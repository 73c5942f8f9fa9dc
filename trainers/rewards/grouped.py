"""A reward of a group of prompts: what a constraint with ``where`` bounds.

Its scores are told and stored as they are, and NaN of other prompts (``Grouped``). Training sums over all prompts:
there it takes the form of a reward of all of them whose mean is that of the group (``Spread``), as
``trainers.estimates.over_all_prompts`` says of samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainers.config import TrialConfig
    from trainers.rewards.base import Reward


class Grouped:
    """A reward that is asked for the samples of some prompts alone, and NaN of others."""

    def __init__(self, reward: Reward, members: frozenset[str]) -> None:
        """Take the reward, and the prompts of the group."""
        self._reward, self._members = reward, members
        self._rows = torch.zeros(0, dtype=torch.long)
        """Places of the samples that were asked about last, of ``self._count``."""
        self._count = 0

    def __getattr__(self, name: str) -> object:
        """Return what else the reward says of itself: version, missing scores, whether it has gradients."""
        if name.startswith("__") or name == "_reward":
            raise AttributeError(name)
        return getattr(self._reward, name)

    @property
    def noise(self) -> Tensor:
        """Standard errors of the scores that were given last, ``[batch]``; NaN of other prompts."""
        errors, known = torch.full((self._count,), torch.nan), getattr(self._reward, "noise", None)
        return errors if known is None or not len(self._rows) else errors.index_put((self._rows,), known)

    def asked(self, prompts: Sequence[str] | None) -> Tensor:
        """Return which of the samples of prompts are scored, ``[batch]``."""
        assert prompts is not None, "groups are of prompts"
        return torch.tensor([prompt in self._members for prompt in prompts])

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Score the samples of the group."""
        assert prompts is not None, "groups are of prompts"
        rows = self.asked(prompts).nonzero()[:, 0]
        self._rows, self._count = rows, len(samples)
        scores = torch.full((len(samples),), torch.nan, dtype=torch.float32, device=samples.device)
        if len(rows) == 0:
            return scores
        places = rows.to(samples.device)
        found = self._reward(samples[places], [prompts[row] for row in rows.tolist()])
        return scores.index_put((places,), found)


class Spread:
    """The same as a reward of all prompts, whose mean is that of the group."""

    def __init__(self, grouped: Grouped, share: float, centre: float) -> None:
        """Take the share ``s`` of the training prompts that are in the group, and ``m``, about the mean of its scores.

        ``m + (r − m) / s`` in the group, and ``m`` elsewhere: with such an ``m`` it hardly varies between prompts.
        """
        self.grouped, self._share, self.centre = grouped, share, centre

    def __getattr__(self, name: str) -> object:
        """Return what else the reward says of itself."""
        if name.startswith("__") or name == "grouped":
            raise AttributeError(name)
        return getattr(self.grouped, name)

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Score the samples."""
        scores, within = self.grouped(samples, prompts), self.grouped.asked(prompts).to(samples.device)
        return torch.where(within, self.centre + (scores - self.centre) / self._share, self.centre)


def spread(
    config: TrialConfig, rewards: Mapping[str, Reward], centres: Mapping[str, float]
) -> dict[str, Reward]:
    """Return rewards as they are trained on: those of groups over all training prompts, around ``centres``."""
    found = dict(rewards)
    for reward in config.rewards:
        grouped = rewards[reward.name]
        if isinstance(grouped, Grouped):
            assert config.prompts is not None, "groups are of prompts"
            assert reward.where is not None, "or it is of all"
            share = len(config.prompts.members("train", reward.where)) / len(config.prompts.train)
            found[reward.name] = Spread(grouped, share, centres[reward.name])
    return found


def neutral(reward: Reward) -> float:
    """Return the score that moves nothing: that of samples which are not of the reward's group."""
    return reward.centre if isinstance(reward, Spread) else 0.0


def scored_rows(reward: Reward, prompts: Sequence[str] | None, count: int) -> Tensor:
    """Return which of ``count`` samples a reward is about, ``[count]``: those of its group, if it has one."""
    if isinstance(reward, Spread):
        return reward.grouped.asked(prompts)
    return torch.ones(count, dtype=torch.bool)


def as_measured(rewards: Mapping[str, Reward]) -> dict[str, Reward]:
    """Return rewards as they are told: those of groups of their samples alone."""
    return {
        name: reward.grouped if isinstance(reward, Spread) else reward for name, reward in rewards.items()
    }
