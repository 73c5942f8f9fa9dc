"""The training loop that all stages share: AdamW, a cosine, averaged weights, resumable at any time."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

Loss = Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]]
SAVE_SECONDS = 90.0
LOG_EVERY = 100


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast a stage trains."""

    steps: int
    """Optimiser steps."""
    learning_rate: float
    """Peak; linear warm-up, then a cosine down to a fiftieth at `horizon`."""
    horizon: int = 0
    """Steps of the cosine; 0 means `steps`."""
    cooldown: int = 0
    """Last steps, over which the rate falls linearly to zero: a short run gets the calm end of a long one."""
    warmup: int = 100
    """Steps of warm-up."""
    weight_decay: float = 0.0
    """AdamW's decoupled decay."""
    average: float = 0.998
    """Decay of the averaged weights, which are what the stage delivers."""

    def rate(self, step: int) -> float:
        """Learning rate at a step."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, (self.horizon or self.steps) - self.warmup)
        calm = min(1.0, (self.steps - step) / max(1, self.cooldown))
        return calm * self.learning_rate * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)


class Run:
    """The state of one stage: weights, averaged weights, optimiser, step; one safetensors file."""

    def __init__(self, modules: Iterable[nn.Module], schedule: Schedule, path: Path) -> None:
        """Collects the trainable parameters, and continues from `path` when it exists."""
        self.parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.schedule = schedule
        self.path = path
        self.step = 0
        self.averages = [p.detach().clone() for p in self.parameters]
        self.optimiser = torch.optim.AdamW(
            self.parameters,
            lr=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
            betas=(0.9, 0.99),
            fused=True,
        )
        if path.exists():
            self._load()

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train, so that callers need not draw their data."""
        return self.step >= self.schedule.steps

    def _load(self) -> None:
        with safe_open(self.path, framework="pt") as file:
            self.step = int(file.metadata()["step"])
            for i, parameter in enumerate(self.parameters):
                parameter.data.copy_(file.get_tensor(f"weight.{i}"))
                self.averages[i].copy_(file.get_tensor(f"average.{i}"))
                self.optimiser.state[parameter] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": file.get_tensor(f"first.{i}"),
                    "exp_avg_sq": file.get_tensor(f"second.{i}"),
                }

    def save(self) -> None:
        """Writes the state; a kill in the middle leaves the previous file."""
        tensors: dict[str, Tensor] = {}
        for i, parameter in enumerate(self.parameters):
            state = self.optimiser.state[parameter]
            tensors[f"weight.{i}"] = parameter.detach().contiguous()
            tensors[f"average.{i}"] = self.averages[i].contiguous()
            tensors[f"first.{i}"] = state["exp_avg"].contiguous()
            tensors[f"second.{i}"] = state["exp_avg_sq"].contiguous()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        save_file(tensors, partial, metadata={"step": str(self.step)})
        partial.replace(self.path)

    def deliver(self) -> None:
        """Puts the averaged weights into the modules."""
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            parameter.data.copy_(average)

    def train(self, name: str, loss: Loss, seed: int) -> None:
        """Trains to the end of the schedule, then delivers the averaged weights.

        The random numbers of a step depend on seed and step only: a resumed run repeats nothing and
        needs no saved generator.
        """
        generator = torch.Generator()
        started, saved = time.monotonic(), time.monotonic()
        first = self.step
        while not self.finished:
            generator.manual_seed(seed * 1_000_003 + self.step)
            for group in self.optimiser.param_groups:
                group["lr"] = self.schedule.rate(self.step)
            value, figures = loss(self.step, generator)
            self.optimiser.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimiser.step()
            self.step += 1
            # A young average would remember the random initialisation: let it start fast.
            decay = min(self.schedule.average, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - decay)
            if self.step % LOG_EVERY == 0:
                seconds = (time.monotonic() - started) / (self.step - first)
                shown = " ".join(f"{key} {figure:.4f}" for key, figure in figures.items())
                print(f"{name} {self.step}/{self.schedule.steps} {shown} ({seconds:.3f} s/step)", flush=True)
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
        if self.step > first:
            self.save()
            print(f"{name} done, {time.monotonic() - started:.0f} s", flush=True)
        self.deliver()
