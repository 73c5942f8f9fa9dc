"""How many samples does a batch need to hear of a reward? The gradient's signal against its noise, by estimator.

    python benchmarks/gradient_noise.py [--samples 512] [--steps 5 --order 2 | --steps 8 --order 1]

At the pretrained model the KL has no gradient, and every estimator's mean is that of the reward alone. From independent
batches of 32: the mean's squared length (between batches, so that noise cancels), the noise of a single sample, and
their ratio, the number of samples at which the mean is as long as its noise. Rewards in σ, gradients to the matrices
that are not at rest there (``lora_B``), all layers together.
"""

import argparse

import torch
from embedded_problem import REWARDS, planned, start_worker

from trainers import registry
from trainers.duality.lagrangian import Coefficients
from trainers.models.build import build_policy
from trainers.rewards.base import build_reward

BATCH = 32


def main() -> None:
    """Print the table."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--order", type=int, choices=(1, 2), default=2)
    arguments = parser.parse_args()

    start_worker()
    sampling = {"steps": arguments.steps} | ({"order": 2} if arguments.order == 2 else {"rest": 2})
    config = planned(sampling=sampling, weights=dict.fromkeys(REWARDS, 1.0)).config
    policy = build_policy(config)
    rewards = {reward.name: build_reward(reward) for reward in config.rewards}
    with torch.no_grad():
        draw = policy.draw(256, 1)
        samples = policy.rollout(draw, reference=True).samples
        deviations = {name: float(rewards[name](samples, draw.prompts).std()) for name in REWARDS}
    matrices = [matrix for name, matrix in policy.parameters().items() if "lora_B" in name]
    print(f"{'estimator':18} {'reward':16} {'signal²':>9} {'noise² of a sample':>19} {'samples':>8}")
    for estimator in ("reward_backprop", "clipped_backprop", "log_variance"):
        gradient = registry.load(registry.PRIMAL_ESTIMATORS, estimator)()
        for name in REWARDS:
            weights = Coefficients(kl=1.0, rewards={name: 1.0 / deviations[name]})
            rows = []
            for batch in range(arguments.samples // BATCH):
                draw = policy.draw(BATCH, batch + 2)
                found = gradient(policy, {name: rewards[name]}, weights, draw, torch.Tensor.detach)
                slopes = torch.autograd.grad(found.loss, matrices)
                rows.append(torch.cat([slope.flatten() for slope in slopes]).double())
            table = torch.stack(rows)
            count, total = len(table), table.sum(dim=0)
            squares = float(table.square().sum())
            signal = (float(total @ total) - squares) / (count * (count - 1))
            noise = (squares / count - signal) * BATCH
            print(f"{estimator:18} {name:16} {signal:9.3g} {noise:19.3g} {noise / signal:8.0f}", flush=True)


if __name__ == "__main__":
    main()
