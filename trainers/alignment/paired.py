"""Rewards of the reference on the noise of a training batch: the control variate of the duals.

They depend on the model, the sampler, the rewards and the noise, not on what is trained. Trials of one sweep share
their seeds, so a process that runs several of them in turn computes each batch once.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor

from trainers.config import TrialConfig
from trainers.models.base import Draw, Policy
from trainers.rewards.base import Reward

_KEPT = 8192  # batches; a batch is a few numbers per reward
_known: OrderedDict[tuple[str, int, int, int, int], dict[str, Tensor]] = OrderedDict()


class PairedReference:
    """Scores of the reference, batch by batch."""

    def __init__(self, config: TrialConfig, policy: Policy, rewards: Mapping[str, Reward]) -> None:
        """Take what the scores depend on."""
        self._policy, self._rewards = policy, rewards
        parts = (config.model, config.prompts, config.sampling, *config.rewards)
        dumped = [part.model_dump(mode="json") for part in parts if part is not None]
        self._key = json.dumps([*dumped, config.training.precision], sort_keys=True)

    @torch.no_grad()
    def __call__(self, draw: Draw) -> dict[str, Tensor]:
        """Return every reward of the reference on the noise of ``draw``, ``[batch]`` each."""
        key = (self._key, draw.seed, draw.count, draw.first, len(draw))
        if key not in _known:
            samples = self._policy.rollout(draw, reference=True).samples
            _known[key] = {name: reward(samples, draw.prompts) for name, reward in self._rewards.items()}
            if len(_known) > _KEPT:
                _known.popitem(last=False)
        _known.move_to_end(key)
        return _known[key]
