"""What does each estimator of the primal gradient cost? On a mixture whose optimum is known, and beside plain GRPO.

    python benchmarks/estimators.py [--problems 2] [--seeds 2] [--batch 32]

First, four steps from the pretrained policy, from 150 batches: the bias of the gradient against backpropagation
through 50,000 samples, as a share of its length, with the standard error that a share of 0 has; its noise for one
image, the root of the summed variance times that of the images of a batch, as a multiple of that length (the square is
the number of images at which signal and noise are equal); and milliseconds of one core per 1,000 images.

Then training for fixed multipliers, from the pretrained model: images until ``L = KL − Σ c_j E[r_j]`` has made 90 % of
the way to what backpropagation of large batches reaches, and keeps it (the mean over the next looks too); medians over
problems and seeds, at the learning rate of 1e-3, 3e-3 and 1e-2 that is best for the estimator. Rewards are black boxes
from ``log_variance`` on.

``grpo`` is a peer written here from its description (Shao et al. 2024, arXiv 2402.03300; for diffusion Liu et al. 2025,
arXiv 2505.05470): groups of 8 images, advantages ``(R − mean) / std`` of the group, at every step the ratio to the
policy that sampled clipped to 1 ± 0.2, and the closed KL of the step to the reference beside it. The advantage is
without unit: for the same optimum its KL weighs ``1 / std`` of R there, which is told to it, or half of that. ``grpo,
4 steps`` takes four optimiser steps on each batch, as ``reused_rollouts`` does at most.
"""

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mixture_frontier import random_problem
from torch import Tensor

from trainers.diffusion.path_kl import path_kl_from_controls
from trainers.duality.lagrangian import Coefficients
from trainers.models.base import Draw, Rollout
from trainers.models.mixture_policy import MixturePolicy
from trainers.primal.base import GlobalMean, PrimalEstimate, scored
from trainers.primal.clipped_backprop import ClippedBackprop
from trainers.primal.log_variance import LogVariance
from trainers.primal.low_variance import LowVariance
from trainers.primal.reused_rollouts import ReusedRollouts
from trainers.primal.reward_backprop import RewardBackprop
from trainers.primal.score_and_path import ScoreAndPath
from trainers.primal.truncated_backprop import TruncatedBackprop
from trainers.rewards.base import Reward, build_rewards

RATES = (1e-3, 3e-3, 1e-2)
SHARE = 0.9
GROUP = 8
CLIP = 0.2
_REPLICATES = 150
_EXACT = 6
_LOOKS = 3
_APART = 1.06
"""Images at a look, as a multiple of those at the one before."""


class Opaque:
    """A reward of which nobody knows the slope."""

    differentiable = False

    def __init__(self, reward: Reward) -> None:
        """Take one that has it."""
        self._reward = reward

    @torch.no_grad()
    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Score samples."""
        return self._reward(samples, prompts)


class Grpo:
    """Group-normalised advantages, the ratio of every step clipped, and a KL of its own; see the module."""

    def __init__(self, spread: float, steps: int = 1) -> None:
        """Take the standard deviation of the weighted reward at the optimum, and the optimiser steps of a batch."""
        self.spread, self._steps = spread, steps
        self._kept: tuple[Rollout, Tensor, Mapping[str, Tensor]] | None = None
        self._uses = 0

    def __call__(
        self,
        policy: MixturePolicy,
        rewards: Mapping[str, Reward],
        coefficients: Coefficients,
        draw: Draw,
        global_mean: GlobalMean,  # noqa: ARG002 - groups are within the batch
    ) -> PrimalEstimate:
        """Return the loss ``mean over steps of −min(ρ A, clip(ρ) A), summed, + a KL / std``."""
        if self._kept is None or self._uses == self._steps:
            drawn, controls = policy.traced(draw)
            with torch.no_grad():
                scores = scored(drawn, rewards, draw, coefficients)
            self._kept, self._uses = (drawn, controls.detach(), scores), 0
        drawn, before, scores = self._kept
        self._uses += 1
        assert drawn.inputs is not None
        assert drawn.shifts is not None
        controls = policy.controls(draw, drawn.inputs)  # [K, batch, d]
        total = sum(weight * scores[name] for name, weight in coefficients.rewards.items())
        groups = total.reshape(-1, GROUP)
        advantage = (groups - groups.mean(dim=1, keepdim=True)) / (groups.std(dim=1, keepdim=True) + 1e-4)
        noise, shift = drawn.shifts - before, drawn.shifts - controls
        log_ratio = 0.5 * (noise.square() - shift.square()).sum(dim=2)  # [K, batch], of each step
        ratio, gain = log_ratio.exp(), advantage.flatten()
        surrogate = torch.minimum(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain).sum(dim=0)
        path_kl = path_kl_from_controls(controls)
        loss = (float(coefficients.kl) / self.spread * path_kl - surrogate).mean()
        return PrimalEstimate(loss=loss, path_kl=path_kl.detach(), rewards=scores)


class Counting(MixturePolicy):
    """Counts the images that it draws."""

    images = 0

    def rollout(self, draw: Draw, **how: Any) -> Rollout:
        """Sample, and count."""
        self.images += len(draw)
        return super().rollout(draw, **how)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A mixture with its prices, and what is known of it."""

    seed: int
    rewards: Mapping[str, Reward]
    coefficients: Coefficients
    spread: float
    """Standard deviation of the weighted reward at the optimum."""

    def policy(self, seed: int, width: int = 32) -> Counting:
        """Return the pretrained policy with a fresh residual."""
        trial, _ = random_problem(self.seed, 2)
        assert trial.config.model.mixture is not None
        torch.manual_seed(seed)
        return Counting.build(trial.config.model.mixture, trial.config.sampling, width)

    def value(self, policy: Counting, looks: Draw) -> float:
        """Return L on fixed noise, which counts as no image."""
        before = policy.images
        with torch.no_grad():
            drawn = policy.rollout(looks)
        policy.images = before
        found = float(self.coefficients.kl) * float(drawn.path_kl.double().mean())
        for name, weight in self.coefficients.rewards.items():
            found -= float(weight) * float(self.rewards[name](drawn.samples).double().mean())
        return found


def problem(seed: int) -> Problem:
    """Draw a problem, and take its exact prices."""
    trial, exact = random_problem(seed, 2)
    thresholds = {c.target: c.bound for c in trial.config.constraints}
    prices = {name: float(price) for name, price in exact.least_kl(thresholds).tilt.items() if price > 0}
    step = 1e-3
    spread = math.sqrt(
        sum(
            prices[one]
            * prices[other]
            * (
                exact.tilted_means(prices | {other: prices[other] + step})[one]
                - exact.tilted_means(prices | {other: prices[other] - step})[one]
            )
            / (2 * step)
            for one in prices
            for other in prices
        )
    )
    rewards = build_rewards(trial.config.rewards)
    return Problem(
        seed=seed, rewards=rewards, coefficients=Coefficients(kl=1.0, rewards=prices), spread=spread
    )


def estimators(spread: float) -> dict[str, tuple[bool, Any]]:
    """Return by name whether rewards are black boxes to it, and the estimator, which may keep what it drew."""
    return {
        "reward_backprop": (False, RewardBackprop()),
        "clipped_backprop": (False, ClippedBackprop()),
        "truncated_backprop, 8": (False, TruncatedBackprop(8)),
        "low_variance": (False, LowVariance()),
        "log_variance": (True, LogVariance()),
        "score_and_path": (True, ScoreAndPath()),
        "reused_rollouts": (True, ReusedRollouts()),
        "reused_rollouts, 8": (True, ReusedRollouts(steps=8, radius=0.2)),
        "grpo": (True, Grpo(spread)),
        "grpo, half the KL": (True, Grpo(2 * spread)),
        "grpo, 4 steps": (True, Grpo(spread, 4)),
        "grpo, 4 steps, half": (True, Grpo(2 * spread, 4)),
    }


def seen(found: Problem, *, opaque: bool) -> dict[str, Reward]:
    """Return the rewards as an estimator sees them."""
    return {name: Opaque(reward) if opaque else reward for name, reward in found.rewards.items()}


def gradients(
    found: Problem, policy: Counting, estimator: Any, *, size: int, count: int, opaque: bool
) -> Tensor:
    """Return the gradient of every batch, ``[count, parameters]``."""
    rewards, parameters, rows = seen(found, opaque=opaque), list(policy.parameters().values()), []
    for batch in range(count):
        loss = estimator(
            policy, rewards, found.coefficients, policy.draw(size, 1000 + batch), Tensor.detach
        ).loss
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double())
    return torch.stack(rows)


def trained(found: Problem, steps: int, rate: float) -> Counting:
    """Train by backpropagation."""
    policy = found.policy(0)
    optimizer = torch.optim.Adam(policy.parameters().values(), lr=rate)
    for step in range(steps):
        draw = policy.draw(256, step)
        optimizer.zero_grad()
        RewardBackprop()(policy, found.rewards, found.coefficients, draw, Tensor.detach).loss.backward()
        optimizer.step()
    return policy


def noises(found: Problem, size: int) -> dict[str, tuple[float, float, float, float]]:
    """Return bias, its error, noise and milliseconds of every estimator on one problem."""
    policy, table = trained(found, 4, 1e-3), {}
    exact = gradients(found, policy, RewardBackprop(), size=8192, count=_EXACT, opaque=False).mean(dim=0)
    length = float(exact.norm())
    for name, (opaque, each) in estimators(found.spread).items():
        estimator = ReusedRollouts(steps=1) if isinstance(each, ReusedRollouts) else each
        if isinstance(each, Grpo):
            estimator = Grpo(each.spread)
        began = time.process_time()
        rows = gradients(found, policy, estimator, size=size, count=_REPLICATES, opaque=opaque)
        took = (time.process_time() - began) / (size * _REPLICATES) * 1e6
        if isinstance(each, Grpo):
            rows = rows * found.spread  # its loss is L over that
        noise = float(rows.var(dim=0).sum())
        # The squared length of a mean has the noise of the mean in it.
        squared = float((rows.mean(dim=0) - exact).square().sum()) - noise / _REPLICATES
        bias, error = math.sqrt(max(squared, 0.0)) / length, math.sqrt(noise / _REPLICATES) / length
        table[name] = (bias, error, math.sqrt(noise * size) / length, took)
    return table


def images_to(
    target: float, found: Problem, name: str, rate: float, seed: int, size: int, most: int
) -> float:
    """Train; returns the images at which L is below the target to stay, infinite where it never is."""
    policy = found.policy(seed)
    looks = policy.draw(1024, 7)
    opaque, estimator = estimators(found.spread)[name]
    rewards = seen(found, opaque=opaque)
    optimizer = torch.optim.Adam(policy.parameters().values(), lr=rate, betas=(0.9, 0.99))
    images, values, step, next_look = list[int](), list[float](), 0, 2 * size
    while policy.images < most:
        draw = policy.draw(size, (seed + 1) * 100_000 + step)
        optimizer.zero_grad()
        estimator(policy, rewards, found.coefficients, draw, Tensor.detach).loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters().values(), 5.0)
        optimizer.step()
        step += 1
        if policy.images >= next_look:
            images.append(policy.images)
            values.append(found.value(policy, looks))
            next_look = max(policy.images + size, int(policy.images * _APART))
            last = values[-1 - _LOOKS :]
            if len(last) > _LOOKS and last[0] <= target and np.mean(last) <= target:
                return float(images[-1 - _LOOKS])
    return math.inf


def main() -> None:
    """Print the tables."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=2)
    parser.add_argument("--first", type=int, default=100, help="seed of the first problem")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=2_000, help="of a run, at most")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    problems = [problem(arguments.first + number) for number in range(arguments.problems)]
    names = list(estimators(1.0))
    tables = [noises(found, arguments.batch) for found in problems]
    took: dict[str, dict[float, list[float]]] = {name: {rate: [] for rate in RATES} for name in names}
    for found in problems:
        fresh = found.policy(0)
        start, end = (
            found.value(policy, fresh.draw(1024, 7)) for policy in (fresh, trained(found, 200, 3e-3))
        )
        target = start + SHARE * (end - start)
        for name in names:
            for rate in RATES:
                took[name][rate] += [
                    images_to(target, found, name, rate, seed, arguments.batch, arguments.images)
                    for seed in range(arguments.seeds)
                ]
    print(
        f"{'estimator':22} {'bias':>14} {'noise':>7} {'ms':>6} {'images to 90 %':>15} {'rate':>6} {'range':>16}"
    )
    for name in names:
        bias, error, noise, cost = np.median([table[name] for table in tables], axis=0)
        rate = min(RATES, key=lambda each: float(np.median(took[name][each])))
        counts = sorted(took[name][rate])
        print(
            f"{name:22} {bias:6.3f} ± {error:5.3f} {noise:7.1f} {cost:6.1f} {np.median(counts):15.0f} {rate:6.0e} "
            f"{counts[0]:7.0f}–{counts[-1]:.0f}"  # noqa: RUF001 - a dash
        )


if __name__ == "__main__":
    main()
