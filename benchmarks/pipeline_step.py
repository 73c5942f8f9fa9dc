"""One implementation of the primal step in a process of its own; ``pipeline_throughput.py`` starts it.

    python benchmarks/pipeline_step.py NAME JSON

The settings are JSON. Answers on stdout are JSON, one line each: {} when loaded, then for every number of steps that
comes on stdin their seconds and the memory. ``check`` takes no stdin: it compares loss and gradients with ours.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from embedded_problem import REWARDS, planned, start_worker
from environment import peak
from straightforward import Straightforward
from torch import Tensor

from orchestrator.plan import make_job, make_plan
from orchestrator.spec.load import load_spec
from trainers import loop
from trainers.alignment.setup import build_setup
from trainers.alignment.state import TrainState
from trainers.config import BaselineStatistics, RewardStatistics, TrialConfig
from trainers.duality.lagrangian import Coefficients
from trainers.evaluate import evaluate
from trainers.models import denoiser
from trainers.models.build import build_policy
from trainers.primal.reward_backprop import RewardBackprop
from trainers.rewards.base import Reward, build_reward
from trainers.workers.collective import Collective

PRICES = dict.fromkeys(REWARDS, 10.0)
"""Nats per reward unit, about 1 per σ."""


def trial(settings: Mapping[str, Any], *, checkpointing: bool | str = False, **chain: Any) -> TrialConfig:
    """Return the trial whose model, sampler and optimiser both implementations have; ``chain`` is otherwise."""
    common = {"steps": settings["sampling_steps"], "guidance": settings["guidance"], "rest": 0}
    return planned(
        sampling=common | chain,
        training={"batch_per_worker": settings["batch"], "gradient_checkpointing": checkpointing},
    ).config


class Ours:
    """The step of ``trainers.loop`` on one micro-batch."""

    def __init__(self, config: TrialConfig, rewards: Mapping[str, Reward]) -> None:
        """Load the pipeline."""
        self.policy = build_policy(config)
        self._rewards, self._training = rewards, config.training
        self._estimator = RewardBackprop()
        self._optimizer = torch.optim.Adam(
            self.policy.parameters().values(), lr=config.training.learning_rate, betas=(0.9, 0.99)
        )

    def step(self, seed: int) -> None:
        """Take one optimiser step."""
        self._optimizer.zero_grad(set_to_none=True)
        self.loss(seed).backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters().values(), self._training.gradient_clip)
        self._optimizer.step()

    def loss(self, seed: int) -> Tensor:
        """Return the loss of a batch."""
        draw = self.policy.draw(self._training.batch_per_worker, seed)
        coefficients = Coefficients(kl=1.0, rewards=PRICES)
        return self._estimator(self.policy, self._rewards, coefficients, draw, Tensor.detach).loss


def straightforward(
    config: TrialConfig, rewards: Mapping[str, Reward], settings: Mapping[str, Any], **options: Any
) -> Straightforward:
    """Return the other implementation of the same problem."""
    return Straightforward(
        rewards,
        PRICES,
        steps=settings["sampling_steps"],
        guidance=settings["guidance"],
        learning_rate=config.training.learning_rate,
        gradient_clip=config.training.gradient_clip,
        **options,
    )


def build(settings: Mapping[str, Any]) -> Callable[[int], None]:
    """Return a function that takes the optimiser step of a number."""
    if "sweep" in settings:
        return of_sweep(settings["sweep"])
    ours = settings.get("ours")
    if ours is not None and ours.get("pairs"):
        denoiser.exact = lambda _: False
    config = trial(settings, **{key: value for key, value in (ours or {}).items() if key != "pairs"})
    rewards = {reward.name: build_reward(reward) for reward in config.rewards}
    if ours is not None:
        return Ours(config, rewards).step
    other = straightforward(config, rewards, settings, **settings["straightforward"])
    assert config.prompts is not None
    prompts, batch, steps = config.prompts.train, settings["batch"], settings["sampling_steps"]
    shape = (steps + 1, batch, 4, 8, 8)

    def step(number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        order = torch.randperm(len(prompts), generator=generator)
        asked = [prompts[order[i % len(prompts)]] for i in range(batch)]
        other.step(asked, torch.randn(shape, generator=generator))

    return step


def of_sweep(asked: Mapping[str, Any]) -> Callable[[int], None]:
    """Return a function that takes a whole step of a trial of its checkout's ``threshold_grid.yaml``, or draws images.

    Args:
        asked: ``method`` of the trial; ``draw`` for images with their rewards and embeddings, as an evaluation draws
            them: True for the policy's, False for the pretrained model's.
    """
    assert loop.__file__ is not None
    spec = load_spec(Path(loop.__file__).parents[1] / "sweeps" / "threshold_grid.yaml")
    trials = [trial for trial in make_plan(spec).trials if trial.config.method == asked["method"]]
    known = {
        "saturation": RewardStatistics(mean=0.59, std=0.14),
        "contrast": RewardStatistics(mean=0.006, std=0.0037),
        "clip": RewardStatistics(mean=0.92, std=0.026),
    }
    job = make_job(trials[len(trials) // 2], BaselineStatistics(rewards=known, samples=2048))
    start = (1.5,) * len(job.thresholds) if asked["method"] == "constrained" else ()
    job = job.model_copy(update={"start": start})
    state = TrainState.start(build_setup(job), job.config.training)
    setup, alone = state.setup, Collective()

    def step(_: int) -> None:
        loop._primal_step(job, state, alone)  # noqa: SLF001 - what is measured
        state.step += 1

    def draw(number: int) -> None:
        evaluate(
            setup.policy,
            setup.rewards,
            samples=32,
            seed=number,
            collective=alone,
            reference=not asked["draw"],
            embedder=setup.embedder,
        )

    return draw if "draw" in asked else step


def serve(settings: Mapping[str, Any]) -> None:
    """Take as many steps as asked for, until nothing more is asked."""
    step = build(settings)
    before, done = psutil.Process().memory_info().rss, 0
    answer({})
    for line in sys.stdin:
        seconds, worked = [], time.process_time()
        for number in range(done, done + int(line)):
            began = time.perf_counter()
            step(number)
            seconds.append(time.perf_counter() - began)
        done += int(line)
        most = peak()
        cpu = (time.process_time() - worked) / int(line)
        answer({"seconds": seconds, "cpu": cpu, "peak": most, "increase": most - before})


def check(settings: Mapping[str, Any]) -> None:
    """Say how far loss and gradients of the two are apart, on one batch and with the same trained adapter."""
    config = trial(settings)
    rewards = {reward.name: build_reward(reward) for reward in config.rewards}
    ours = Ours(config, rewards)
    draw = ours.policy.draw(settings["batch"], 0)
    assert draw.prompts is not None
    ways = {"checkpointing": {}, "plain": {"checkpointing": False}, "two passes": {"passes": 2}}
    found = {"ours": gradients(ours.policy.parameters(), lambda: ours.loss(0))}
    for name, options in ways.items():
        other = straightforward(config, rewards, settings, **options)
        found[name] = gradients(other.parameters(), lambda other=other: other.loss(draw.prompts, draw.noise))
    loss, gradient = found["ours"]
    for name in ways:
        apart = (found[name][1] - gradient).norm() / gradient.norm()
        answer({"way": name, "loss": found[name][0], "ours": loss, "gradients apart": f"{apart:.1e}"})


def gradients(parameters: Mapping[str, Tensor], loss: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Return loss and gradient at parameters that depend on their names only."""
    generator = torch.Generator().manual_seed(1)
    ordered = [parameters[name] for name in sorted(parameters)]
    with torch.no_grad():
        for parameter in ordered:
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    value = loss()
    return value.item(), torch.cat([g.flatten() for g in torch.autograd.grad(value, ordered)])


def answer(document: Mapping[str, Any]) -> None:
    """Write one line."""
    print(json.dumps(document), flush=True)


def main() -> None:
    """Do as the command line says."""
    start_worker()
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    if name == "check":
        check(settings)
    else:
        serve(settings)


if __name__ == "__main__":
    main()
