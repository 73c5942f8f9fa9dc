"""Prints the peak resident memory, bytes, of a process that takes two steps of the trial whose config is given."""

import resource
import sys

import torch
from torch import Tensor

from trainers import registry
from trainers.config import TrialConfig
from trainers.duality.lagrangian import Coefficients
from trainers.models.build import build_policy
from trainers.rewards.base import build_reward


def main() -> None:
    """Take the steps, after an evaluation has begun."""
    torch.set_num_threads(1)
    config = TrialConfig.model_validate_json(sys.argv[1])
    policy = build_policy(config)
    rewards = {reward.name: build_reward(reward) for reward in config.rewards}
    estimator = registry.load(registry.PRIMAL_ESTIMATORS, config.training.primal)()
    coefficients = Coefficients(kl=1.0, rewards=dict.fromkeys(rewards, 1.0))
    optimizer = torch.optim.Adam(policy.parameters().values())
    with torch.no_grad():
        policy.rollout(policy.fixed_draw(0, 0, policy.chunk))
    for seed in range(2):
        draw = policy.draw(config.training.batch_per_worker, seed)
        estimator(policy, rewards, coefficients, draw, Tensor.detach).loss.backward()
        optimizer.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
    sys.stdout.write(f"{peak}\n")


if __name__ == "__main__":
    main()
