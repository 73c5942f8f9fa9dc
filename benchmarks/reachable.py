"""How much of what multipliers can gain can the steps of a chain reach at all, whatever is trained, and on what?

    python benchmarks/reachable.py [--chains 8 5x2 7x2] [--prompts 48] [--copies 160]

A policy moves the mean of every active step and leaves its noise as it is. For small multipliers λ the most that any
policy gains is ``½ Σ_t E‖E[λ'r ε_t | x_t]‖²``: what of a reward is linear in the noise of a step, given the state
before it. The law for which the multipliers ask gains ``½ E Var(λ'r | prompt)``. To second order in λ the ratio of the
two bounds ``closed`` (``benchmarks/closing.py``), of networks of any size and of any training. The remainder is what
x_T decides, of which no step has a say, what the resting steps do, and what of a reward is not linear in a step's
noise: a choice between modes, say.

It is measured on pretrained paths alone: from one state of every prompt and active step many paths go on, each with its
own noise. The mean product of ``r ε`` of two different ones is the squared length without bias. ± is the jackknife over
prompts, which numerator and denominator share.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from embedded_problem import REWARDS, planned, start_worker

from trainers.models.base import Draw, Policy
from trainers.models.build import build_policy
from trainers.rewards.base import Reward, build_reward
from trainers.rewards.together import together
from trainers.types import FloatArray

POINTS = {
    "saturation": (1.0, 0.0, 0.0),
    "local contrast": (0.0, 1.0, 0.0),
    "CLIP": (0.0, 0.0, 1.0),
    "0.2 2 2.5": (0.2, 2.0, 2.5),
    "1 1 1": (1.0, 1.0, 1.0),
    "0 3 2.5": (0.0, 3.0, 2.5),
}
"""λ of saturation, local contrast and CLIP, nats per σ."""
BATCH = 64


def main() -> None:
    """Print the table."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chains", nargs="+", default=["8", "5x2", "7x2"], help="steps, x2: of second order")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--copies", type=int, default=160, help="paths that go on from a state")
    arguments = parser.parse_args()
    start_worker()
    print(f"{'chain':6} {'λ per σ':15} {'left by x_T':>12} {'reachable':>12}   by step")
    for chain in arguments.chains:
        steps, _, order = chain.partition("x")
        sampling = {"steps": int(steps)} | ({"order": 2} if order else {"rest": 2})
        config = planned(sampling=sampling, weights=dict.fromkeys(REWARDS, 1.0)).config
        policy = build_policy(config)
        rewards = {reward.name: build_reward(reward) for reward in config.rewards}
        scale = scores(policy, rewards, policy.fixed_draw(7, 0, 1024)).std(axis=0, ddof=1)
        linear, spreads = moments(policy, rewards, arguments.prompts, arguments.copies)
        for name, point in POINTS.items():
            prices = np.array(point) / scale
            gains = np.einsum("tpij,i,j->tp", linear, prices, prices)
            whole, left = np.einsum("tpij,i,j->tp", spreads, prices, prices)
            parts = " ".join(f"{step.sum() / whole.sum():5.2f}" for step in gains)
            print(
                f"{chain:6} {name:15} {ratio(left, whole):>12} {ratio(gains.sum(axis=0), whole):>12}   {parts}",
                flush=True,
            )


def ratio(parts: FloatArray, whole: FloatArray) -> str:
    """Return the ratio of two sums over prompts, ``[p]`` each, with its jackknifed error."""
    without = (parts.sum() - parts) / (whole.sum() - whole)
    error = np.sqrt((len(parts) - 1) * without.var())
    return f"{parts.sum() / whole.sum():.2f} ± {error:.2f}"


@torch.no_grad()
def scores(policy: Policy, rewards: Mapping[str, Reward], draw: Draw) -> FloatArray:
    """Return rewards of the pretrained model, ``[n, m]``."""
    found = []
    for first in range(0, len(draw), BATCH):
        part = draw.part(first, min(first + BATCH, len(draw)))
        samples = policy.rollout(part, reference=True).samples
        with together():
            found.append(torch.stack([rewards[name](samples, part.prompts) for name in REWARDS], dim=1))
    return np.asarray(torch.cat(found).double().numpy())


def moments(
    policy: Policy, rewards: Mapping[str, Reward], prompts: int, copies: int
) -> tuple[FloatArray, FloatArray]:
    """Return what is linear in the noise of every active step, and the spread of a prompt and of one x_T of it.

    Returns:
        ``E[r ε]·E[r ε]`` given the state, ``[J, prompts, m, m]``, and covariances ``[2, prompts, m, m]``.
    """
    linear = np.zeros((policy.active_steps, prompts, len(REWARDS), len(REWARDS)))
    spreads = np.zeros((2, *linear.shape[1:]))
    for prompt in range(prompts):
        path = policy.fixed_draw(10_000_000, prompt, prompt + 1)
        assert path.prompts is not None
        for known in range(policy.active_steps + 1):  # of the path: x_T, the noise of the first step, …
            own = policy.fixed_draw(copies * (known + (policy.active_steps + 1) * prompt), 0, copies)
            noise = own.noise.clone()
            noise[:known] = path.noise[:known]
            values = scores(policy, rewards, replace(own, noise=noise, prompts=path.prompts * copies))
            values = values - values.mean(axis=0)
            if known < 2:
                spreads[known, prompt] = values.T @ values / (copies - 1)
            if known > 0:
                drawn = noise[known].flatten(1).double().numpy()
                products = values.T @ drawn  # [m, d]
                same = np.einsum("ni,nj,n->ij", values, values, np.square(drawn).sum(axis=1))
                linear[known - 1, prompt] = (products @ products.T - same) / (copies * (copies - 1))
    return linear, spreads


if __name__ == "__main__":
    main()
