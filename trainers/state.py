"""What changes while a trial trains, and how it is saved and put back."""

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch

from trainers import checkpoint
from trainers.collective import Collective
from trainers.models.mixture import ControlNetwork
from trainers.setup import Setup
from trainers.types import FloatArray, StepRecord


@dataclass(kw_only=True)
class TrainState:
    """Parameters, optimiser, multipliers, averages and counters of one trial."""

    setup: Setup
    network: ControlNetwork
    averaged: ControlNetwork
    """Mean of the parameters over the last steps; what is evaluated."""
    optimizer: torch.optim.Adam
    step: int = 0
    """Optimiser steps done."""
    anneal_from: int | None = None
    """Step at which the rates began to fall; None while they are constant."""
    averaged_steps: int = 0
    multiplier_sum: list[float] = field(default_factory=list)
    violations: list[float] | None = None
    """Last scaled violations, ``[m]``."""
    pending: list[dict[str, float]] = field(default_factory=list)
    """Means of the steps since the last logged row."""
    history: list[StepRecord] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def start(cls, setup: Setup, learning_rate: float) -> "TrainState":
        """Return the state before the first step."""
        return cls(
            setup=setup,
            network=setup.network,
            averaged=copy.deepcopy(setup.network),
            optimizer=torch.optim.Adam(setup.network.parameters(), lr=learning_rate, betas=(0.9, 0.99)),
            multiplier_sum=[0.0] * len(setup.dual.multipliers),
        )

    @torch.no_grad()
    def average(self, multipliers: FloatArray) -> None:
        """Add the current parameters and multipliers ``[m]`` to the averages."""
        self.averaged_steps += 1
        for mean, current in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(current, 1.0 / self.averaged_steps)
        self.multiplier_sum = [
            total + new for total, new in zip(self.multiplier_sum, multipliers, strict=True)
        ]

    def mean_multipliers(self) -> list[float]:
        """Return the averaged multipliers, or the current ones before averaging began."""
        if self.averaged_steps == 0:
            return list(self.setup.dual.multipliers)
        return [total / self.averaged_steps for total in self.multiplier_sum]

    def final_network(self) -> ControlNetwork:
        """Return the averaged network, or the current one before averaging began."""
        return self.averaged if self.averaged_steps else self.network

    def pack(self, collective: Collective) -> checkpoint.Files:
        """Return the checkpoint's files. Every worker must call it: the random states of all are in it."""
        generators = collective.gather(torch.get_rng_state()[None])
        tensors = (
            checkpoint.prefixed("network", self.network.state_dict())
            | checkpoint.prefixed("averaged", self.averaged.state_dict())
            | checkpoint.optimizer_tensors(self.optimizer)
            | {"generators": generators}
        )
        return checkpoint.pack(
            tensors,
            {
                "step": self.step,
                "anneal_from": self.anneal_from,
                "averaged_steps": self.averaged_steps,
                "multiplier_sum": self.multiplier_sum,
                "violations": self.violations,
                "pending": self.pending,
                "history": [dataclasses.asdict(record) for record in self.history],
                "seconds": self.seconds,
                "dual": self.setup.dual.state(),
                "monitor": self.setup.monitor.state(),
            },
        )

    def unpack(self, files: checkpoint.Files, collective: Collective) -> None:
        """Continue from ``pack``'s files."""
        tensors, state = checkpoint.unpack(files)
        self.network.load_state_dict(checkpoint.stripped("network", tensors))
        self.averaged.load_state_dict(checkpoint.stripped("averaged", tensors))
        checkpoint.load_optimizer(self.optimizer, tensors)
        generators = tensors["generators"]
        if len(generators) == collective.world_size:
            # A copy: torch 2.13 crashes on a state that is a view into a larger tensor.
            torch.set_rng_state(generators[collective.rank].clone())
        self._load_counters(state)

    def _load_counters(self, state: dict[str, Any]) -> None:
        self.step, self.anneal_from = state["step"], state["anneal_from"]
        self.averaged_steps, self.multiplier_sum = state["averaged_steps"], state["multiplier_sum"]
        self.violations, self.pending = state["violations"], state["pending"]
        self.history = [StepRecord(**record) for record in state["history"]]
        self.seconds = state["seconds"]
        self.setup.dual.load(state["dual"])
        self.setup.monitor.load(state["monitor"])
