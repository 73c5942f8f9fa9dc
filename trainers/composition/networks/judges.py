"""What judges the samples of a composition: several rewards, each against the sample's prompt or a text of its own.

Concepts are judged by the image's score against each of them, and by the least of these, image by image.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from trainers.config import RewardConfig
from trainers.failures import Unscored
from trainers.rewards.base import Reward, build_reward, most_missing, why_missing

LEAST = "least"
"""Kind of a judge that is the smallest of several others."""


class Judge(Protocol):
    """Scores samples by all rewards at once."""

    @property
    def count(self) -> int:
        """Rewards R."""

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None, /) -> Tensor:
        """Return ``[R, batch]``."""


class Judges:
    """Scores of samples by every reward of a trial."""

    def __init__(self, configs: Sequence[RewardConfig]) -> None:
        """Build the rewards; those of equal kind and parameters once.

        Raises:
            ValueError: unknown kind, wrong parameters, or a least of what is not judged.
        """
        self.names = tuple(config.name for config in configs)
        self._texts: list[str | None] = [config.text for config in configs]
        built: dict[str, Reward] = {}
        self._rewards: list[Reward | None] = []
        self._least: dict[int, list[int]] = {}
        for index, config in enumerate(configs):
            if config.kind == LEAST:
                self._least[index] = [self._number(name) for name in config.parameters["of"]]
                self._rewards.append(None)
                continue
            key = config.model_copy(update={"name": "reward", "text": None}).model_dump_json()
            if key not in built:
                built[key] = build_reward(config)
            self._rewards.append(built[key])

    def _number(self, name: str) -> int:
        if name not in self.names:
            raise ValueError(
                f"the least of {name!r} is asked for, which nothing judges: {', '.join(self.names)}"
            )
        return self.names.index(name)

    @property
    def count(self) -> int:
        """Judges R."""
        return len(self.names)

    @torch.no_grad()
    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Return ``[R, batch]``, float64, of samples ``[batch, …]``."""
        scores = samples.new_zeros(self.count, len(samples), dtype=torch.float64)
        for index, (reward, text) in enumerate(zip(self._rewards, self._texts, strict=True)):
            if reward is not None:
                asked = prompts if text is None else (text,) * len(samples)
                scores[index] = reward(samples, asked).to(scores)
                if most_missing(reward) > 0 and scores[index].isnan().any():
                    raise Unscored(
                        f"reward {self.names[index]!r} has no score for an image, and a composition needs all of "
                        f"them{why_missing(reward)}"
                    )
        for index, others in self._least.items():
            scores[index] = scores[others].amin(dim=0)
        return scores.cpu()
