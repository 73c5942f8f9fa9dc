"""What the means of rewards that drive the multipliers are differences to: the control variate of the duals.

It depends on the model, the sampler, the rewards, and the noise or the prompts, not on what is trained.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from trainers.alignment.pretrained import BASELINE_SEED
from trainers.config import TrialConfig
from trainers.models.base import Draw, Policy
from trainers.rewards.base import Reward
from trainers.rewards.together import together
from trainers.types import FloatArray

_KEPT = 8192  # batches; a batch is a few numbers per reward
_known: OrderedDict[tuple[str, int, int, int, int], dict[str, Tensor]] = OrderedDict()


class Baseline(Protocol):
    """Says of a training batch what the pretrained model would have come to."""

    def draw(self, number: int, first: int, last: int) -> Draw | None:  # noqa: ARG002 - for those that take any
        """Return samples ``first`` to ``last`` of the trial's batch ``number``; None: it may be any."""
        return None

    def __call__(self, draw: Draw) -> Mapping[str, Tensor]:
        """Return a number for every reward and sample, ``[batch]`` each; its mean over draws is the reward's."""


def paired_with(
    config: TrialConfig,
    policy: Policy,
    rewards: Mapping[str, Reward],
    sampled: Mapping[str, FloatArray] | None,
    prompts: Sequence[str] | None,
) -> Baseline | None:
    """Return what the duals are paired with; None where it is nothing.

    Args:
        config: Of the trial.
        policy: That is trained.
        rewards: By name.
        sampled: Of the pretrained model on training prompts, ``[n]`` each; None where that is not known.
        prompts: Of these samples.
    """
    pairing = config.duals.paired
    if pairing is False:
        return None
    if pairing == "stored" and sampled is not None:
        return StoredReference(config, policy, sampled, PairedReference(config, policy, rewards))
    # Fixed weights have no duals to drive: their means only tell when a trial has come to rest, not worth a rollout.
    if prompts is not None and sampled is not None and (pairing == "prompt" or config.method == "weighted"):
        return PromptMeans(sampled, prompts)
    return None if pairing == "prompt" else PairedReference(config, policy, rewards)


class PromptMeans(Baseline):
    """Means of the pretrained model's stored samples, prompt by prompt."""

    def __init__(self, sampled: Mapping[str, FloatArray], prompts: Sequence[str]) -> None:
        """Take the samples, ``[n]`` for each reward, and their prompts."""
        known, places = np.unique(np.array(prompts, dtype=object).astype(str), return_inverse=True)
        self._places = {str(prompt): place for place, prompt in enumerate(known)}
        self._means: dict[str, FloatArray] = {}
        for name, values in sampled.items():
            there = ~np.isnan(values)  # scores that could be had
            counts = np.bincount(places[there], minlength=len(known))
            whole = values[there].mean()
            sums = np.bincount(places[there], weights=values[there], minlength=len(known))
            means = np.divide(sums, counts, out=np.full_like(sums, whole), where=counts > 0)
            # Training asks for each prompt alike, whatever the samples do. Last, for a prompt without a sample.
            self._means[name] = np.append(means - means.mean() + whole, whole)

    def __call__(self, draw: Draw) -> dict[str, Tensor]:
        """Return the mean of every reward for the prompts of ``draw``, ``[batch]`` each."""
        assert draw.prompts is not None
        places = [self._places.get(prompt, -1) for prompt in draw.prompts]
        device = draw.noise.device
        return {
            name: torch.tensor(means[places], dtype=torch.float32, device=device)
            for name, means in self._means.items()
        }


class PairedReference(Baseline):
    """Scores of the reference on the noise of a batch.

    Trials of one sweep share their seeds, so a process that runs several of them computes each batch once.
    """

    def __init__(self, config: TrialConfig, policy: Policy, rewards: Mapping[str, Reward]) -> None:
        """Take what the scores depend on."""
        self._policy, self._rewards = policy, rewards
        parts = (config.model, config.prompts, config.sampling, *config.rewards)
        dumped = [part.model_dump(mode="json") for part in parts if part is not None]
        self._key = json.dumps(
            [*dumped, config.training.precision, config.training.images_per_prompt], sort_keys=True
        )

    @torch.no_grad()
    def __call__(self, draw: Draw) -> dict[str, Tensor]:
        """Return every reward of the reference on the noise of ``draw``, ``[batch]`` each."""
        key = (self._key, draw.seed, draw.count, draw.first, len(draw))
        if key not in _known:
            samples = self._policy.rollout(draw, reference=True).samples
            with together():
                found = {name: reward(samples, draw.prompts) for name, reward in self._rewards.items()}
            if any(bool(scores.isnan().any()) for scores in found.values()):
                return found  # what is missing now may be had by the next trial that asks
            _known[key] = found
            if len(_known) > _KEPT:
                _known.popitem(last=False)
        _known.move_to_end(key)
        return _known[key]


class StoredReference(Baseline):
    """Scores of the reference that are known: training begins with the noise and the prompts of its stored samples.

    None is used twice. What comes after them is rolled out beside the reference (``PairedReference``).
    """

    def __init__(
        self,
        config: TrialConfig,
        policy: Policy,
        sampled: Mapping[str, FloatArray],
        then: PairedReference,
    ) -> None:
        """Take the samples of ``sample_reference`` on training prompts, ``[n]`` each, and what comes after them."""
        self._policy, self._then = policy, then
        self._known = {name: torch.tensor(values, dtype=torch.float32) for name, values in sampled.items()}
        self._prompts = None if config.prompts is None else config.prompts.in_turn("train", BASELINE_SEED)
        self._size = config.training.batch_per_worker * config.workers
        batches = min(len(values) for values in sampled.values()) // self._size
        order = np.random.default_rng((config.seed, self._size)).permutation(batches)
        self._begins: list[int] = (order * self._size).tolist()

    def draw(self, number: int, first: int, last: int) -> Draw | None:
        """Return stored samples, whole batches of neighbours in an order of the trial's own."""
        if number >= len(self._begins):
            return None
        begin = self._begins[number]
        drawn = self._policy.fixed_draw(BASELINE_SEED, begin + first, begin + last, self._prompts)
        return replace(drawn, first=first, count=self._size)

    def __call__(self, draw: Draw) -> Mapping[str, Tensor]:
        """Return every reward of the reference on the noise of ``draw``, ``[batch]`` each."""
        if draw.seed != BASELINE_SEED:
            return self._then(draw)
        rows = torch.from_numpy(draw.seeds - BASELINE_SEED)
        return {name: values[rows].to(draw.noise.device) for name, values in self._known.items()}
