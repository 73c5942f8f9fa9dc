"""What half precision does to the KL, and what policy and reference cost in one pass.

    python benchmarks/half_precision.py [--precisions fp32 bf16 fp16] [--rounds 3]

On the shipped pipeline, 8 steps, guidance 5, rest 0: the mean path KL of adapters of growing size by the pass of
``trainers.models.shifted`` and by two separate passes, and the processor time of a training step (KL and its gradient
through the whole chain) by both, in turn in one process. Rounds of timing; the first is left out.
"""

import argparse
import statistics
import time
from functools import partial

import torch
from embedded_problem import start_worker
from torch import Tensor

from trainers.config import ModelConfig, PromptsConfig, SamplingConfig, TrainingConfig
from trainers.models.pipeline_policy import PipelinePolicy

SIZES = (0.0, 1e-7, 1e-4, 1e-2, 1e-1)
"""Deviation of the entries of B; those of A are of order 1."""
SAMPLES, TIMED = 8, 1e-2


class TwoPasses(PipelinePolicy):
    """The same policy with a network call of its own for the reference."""

    def _pair(self, step: int, state: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        base, moved = (
            self._denoiser.guess(step, state, embedding, prepare=partial(self._adapter.switch, on=on))[0]
            for on in (False, True)
        )
        return base, moved - base


def policy(cls: type[PipelinePolicy], precision: str) -> PipelinePolicy:
    """Return the policy on the shipped pipeline."""
    torch.manual_seed(0)
    prompts = ("a red circle", "a blue square")
    return cls.build(
        ModelConfig(pretrained="embedded"),
        PromptsConfig(train=prompts, evaluate=prompts),
        SamplingConfig(steps=8, guidance=5.0),
        TrainingConfig(precision=precision),
    )


@torch.no_grad()
def resize(built: PipelinePolicy, size: float) -> None:
    """Give the adapter an effect."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in built.parameters().items():
        if ".lora_B." in name:
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))


def seconds(built: PipelinePolicy, seed: int) -> float:
    """Return the processor time of one KL with its gradient."""
    began = time.process_time()
    kl = built.rollout(built.draw(SAMPLES, seed)).path_kl.mean()
    torch.autograd.grad(kl, list(built.parameters().values()))
    return time.process_time() - began


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "fp16"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    start_worker()
    print("precision  passes  " + "".join(f"KL at {size:<8g}" for size in SIZES) + "step, s")
    for precision in options.precisions:
        ways = {"one": policy(PipelinePolicy, precision), "two": policy(TwoPasses, precision)}
        kls: dict[str, list[float]] = {name: [] for name in ways}
        for size in SIZES:
            for name, built in ways.items():
                resize(built, size)
                with torch.no_grad():
                    kls[name].append(float(built.rollout(built.fixed_draw(7, 0, SAMPLES)).path_kl.mean()))
        for built in ways.values():
            resize(built, TIMED)
        rounds = [
            {name: seconds(built, seed) for name, built in ways.items()} for seed in range(1 + options.rounds)
        ]
        for name in ways:
            spent = statistics.median(timed[name] for timed in rounds[1:])
            print(
                f"{precision:9}  {name:6}  " + "".join(f"{kl:<14.4g}" for kl in kls[name]) + f"{spent:.2f}",
                flush=True,
            )
        ratio = statistics.median(timed["one"] / timed["two"] for timed in rounds[1:])
        print(f"{precision:9}  one pass takes {ratio:.2f} of the time of two", flush=True)


if __name__ == "__main__":
    main()
