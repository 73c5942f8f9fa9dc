"""Exact mixtures that are told apart by a prompt, each a group of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.config import MixtureConfig, PromptsConfig, RewardConfig, SamplingConfig
from trainers.models.base import Draw, Rollout
from trainers.models.denoiser import shuffled
from trainers.models.mixture_policy import MixturePolicy
from trainers.types import FloatArray

MIXTURES = {
    "text": MixtureConfig(weights=(0.5, 0.5), means=((-1.0,), (1.0,)), covariances=(((0.4,),), ((0.4,),))),
    "photo": MixtureConfig(weights=(0.7, 0.3), means=((0.0,), (2.0,)), covariances=(((0.5,),), ((0.3,),))),
}
PROMPTS = PromptsConfig(
    train=("text", "photo"),
    evaluate=("text", "photo"),
    train_metadata={"tag": ("text", "photo")},
    evaluate_metadata={"tag": ("text", "photo")},
)
REWARDS = tuple(
    RewardConfig(name=f"x[{tag}]", kind="linear", parameters={"direction": (1.0,)}, where={"tag": tag})
    for tag in MIXTURES
)


class PromptedMixtures:
    """A policy that samples one of several mixtures, by the prompt; each with a network of its own."""

    chunk, paired_samples = 4096, False

    def __init__(self, sampling: SamplingConfig, width: int, tilts: int = 0) -> None:
        """Build the policies; by the tilt where there are ``tilts``, which each sees of all groups."""
        self._set({name: MixturePolicy.build(m, sampling, width, tilts) for name, m in MIXTURES.items()})

    def _set(self, policies: Mapping[str, MixturePolicy]) -> None:
        self._policies = policies
        self._first = next(iter(self._policies.values()))
        self.steps = self.active_steps = self._first.steps

    def at(self, tilt: FloatArray) -> "PromptedMixtures":
        alone = object.__new__(PromptedMixtures)
        alone._set({name: policy.at(tilt) for name, policy in self._policies.items()})
        return alone

    def expect(self, tilts: FloatArray) -> None:
        pass

    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        return {f"{n}.{k}": v for n, p in self._policies.items() for k, v in p.parameters().items()}

    def draw(self, count: int, seed: int, *, first: int = 0, last: int | None = None) -> Draw:
        drawn = self._first.draw(count, seed, first=first, last=last)
        asked = shuffled(PROMPTS.train, count, seed, tuple(PROMPTS.train_metadata.values()))
        return replace(drawn, prompts=asked[first : count if last is None else last])

    def fixed_draw(self, seed: int, first: int, last: int, prompts: Sequence[str] | None = None) -> Draw:
        asked = prompts or PROMPTS.evaluate
        drawn = self._first.fixed_draw(seed, first, last)
        return replace(drawn, prompts=tuple(asked[i % len(asked)] for i in range(first, last)))

    def rollout(self, draw: Draw, **how: Any) -> Rollout:
        return self._together(draw, lambda policy, part: (policy.rollout(part, **how), None))[0]

    def traced(self, draw: Draw) -> tuple[Rollout, Tensor]:
        found, controls = self._together(draw, lambda policy, part: policy.traced(part))
        assert controls is not None
        return found, controls

    def adapter(self) -> dict[str, bytes]:
        return {}

    def _together(
        self, draw: Draw, sample: Callable[[MixturePolicy, Draw], tuple[Rollout, Tensor | None]]
    ) -> tuple[Rollout, Tensor | None]:
        asked = np.array(draw.prompts)
        order = [np.flatnonzero(asked == name) for name in self._policies]
        parts = [
            sample(
                policy,
                replace(
                    draw,
                    noise=draw.noise[:, rows],
                    seeds=draw.seeds[rows],
                    prompts=None,
                    tilt=None if draw.tilt is None else draw.tilt[rows],
                ),
            )
            for policy, rows in zip(self._policies.values(), order, strict=True)
        ]
        back = torch.tensor(np.argsort(np.concatenate(order)))

        def joined(values: Sequence[Tensor | None], dim: int) -> Tensor | None:
            there = [value for value in values if value is not None]
            return torch.cat(there, dim=dim).index_select(dim, back) if there else None

        rollouts = [rollout for rollout, _ in parts]
        fields = {name: joined([getattr(r, name) for r in rollouts], 0) for name in ("samples", "path_kl")}
        fields |= {name: joined([getattr(r, name) for r in rollouts], 0) for name in ("log_ratio", "final")}
        fields |= {name: joined([getattr(r, name) for r in rollouts], 1) for name in ("controls", "shifts")}
        found: Any = Rollout
        return found(**fields), joined([controls for _, controls in parts], 1)
