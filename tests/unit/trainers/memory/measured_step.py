"""Prints the peak resident memory, bytes, of a process that takes two steps of the trial whose config is given."""

import sys
from pathlib import Path

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
    # Not ru_maxrss: it begins with what the process that started this one had.
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")
    )
    peak = int(line.split()[1]) * 1024  # KiB
    sys.stdout.write(f"{peak}\n")


if __name__ == "__main__":
    main()
