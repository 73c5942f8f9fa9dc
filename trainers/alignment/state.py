"""What changes while a trial trains, and how it is saved and put back."""

import dataclasses
import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainers.alignment.setup import Setup
from trainers.config import TrainingConfig
from trainers.types import FloatArray, StepRecord
from trainers.workers import checkpoint
from trainers.workers.collective import Collective

_BETAS = (0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A state that may be what the trial came to."""

    step: int
    parameters: Mapping[str, Tensor]
    multipliers: Sequence[float] | None
    """``[m]`` (``[N m]`` in a box), per scaled violation, averaged as the parameters were; None where the parameters
    are not those that the multipliers had settled for: no price then stands beside them."""


@dataclass(frozen=True, kw_only=True)
class Best(Candidate):
    """The state of least KL among those that met every threshold in training."""

    kl: float
    """Over the window before it, nats."""


@dataclass(kw_only=True)
class TrainState:
    """Parameters, optimiser, multipliers, averages and counters of one trial."""

    setup: Setup
    parameters: Mapping[str, nn.Parameter]
    """What is trained, by name; the policy's own."""
    averaged: dict[str, Tensor]
    """Mean of the parameters over the last steps; what is evaluated."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    """Keeps float16 gradients from vanishing; does nothing in other precisions."""
    ema: float | None = None
    """Decay of the average; None for the plain mean."""
    step: int = 0
    """Optimiser steps done."""
    round: int = 1
    """Number of the round of training that runs, or ran last."""
    round_from: int = 0
    """Step at which it began."""
    ended: bool = False
    """Whether it has come to its end."""
    anneal_from: int | None = None
    """Step at which the rates began to fall; None while they are constant."""
    averaged_steps: int = 0
    averaged_multipliers: list[float] = field(default_factory=list)
    """``[m]``, mean over the same steps, with the same weights, as that of the parameters."""
    skipped: int = 0
    """Steps that changed nothing, because their float16 gradient was not finite."""
    skipped_in_row: int = 0
    """The last of them, without one between that did."""
    splits: int = 1
    """Parts in which a micro-batch is computed, because the memory did not hold the whole."""
    notes: list[str] = field(default_factory=list)
    best: Best | None = None
    violations: list[float] | None = None
    """Last scaled violations, ``[m]``."""
    pending: list[dict[str, float]] = field(default_factory=list)
    """Means of the steps since the last logged row."""
    history: list[StepRecord] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def start(cls, setup: Setup, training: TrainingConfig) -> "TrainState":
        """Return the state before the first step."""
        parameters = setup.policy.parameters()
        device = next(iter(parameters.values())).device.type
        return cls(
            setup=setup,
            parameters=parameters,
            averaged={name: parameter.detach().clone() for name, parameter in parameters.items()},
            optimizer=_optimizer(training, parameters.values()),
            scaler=torch.amp.GradScaler(device, enabled=training.precision == "fp16"),
            ema=training.ema,
            averaged_multipliers=[0.0] * len(setup.dual.multipliers),
        )

    @torch.no_grad()
    def average(self, multipliers: FloatArray) -> None:
        """Add the current parameters and multipliers ``[m]`` to the averages."""
        self.averaged_steps += 1
        weight = 1.0 / self.averaged_steps
        if self.ema is not None:
            weight = max(weight, 1.0 - self.ema)
        for name, current in self.parameters.items():
            self.averaged[name].lerp_(current, weight)
        self.averaged_multipliers = [
            mean + weight * (float(new) - mean)
            for mean, new in zip(self.averaged_multipliers, multipliers, strict=True)
        ]

    def count_step(self, *, skipped: bool) -> None:
        """Count an optimiser step, or one that was skipped."""
        self.skipped += skipped
        self.skipped_in_row = self.skipped_in_row + 1 if skipped else 0

    def begin_round(self, density: Sequence[float] | None = None) -> None:
        """Train on from the averages that the last round came to; rates begin anew, steps and noise go on.

        Args:
            density: Of the thresholds that are drawn, ``[N]``, where they move; None: evenly.
        """
        last = self.last()
        self._set(last.parameters)
        self.setup.dual.restart(last.multipliers or ())
        self.round, self.round_from, self.ended = self.round + 1, self.step, False
        self.anneal_from, self.averaged_steps, self.violations = None, 0, None
        self.averaged_multipliers = [0.0] * len(self.averaged_multipliers)
        self.setup.monitor.load([])
        if self.setup.frontier is not None:
            self.setup.frontier.lean(density)

    def last(self) -> Candidate:
        """Return the averaged state, or the current one before averaging began."""
        if self.averaged_steps:
            return Candidate(
                step=self.step, parameters=self.averaged, multipliers=tuple(self.averaged_multipliers)
            )
        current = tuple(self.setup.dual.multipliers.tolist())
        return Candidate(step=self.step, parameters=self.parameters, multipliers=current)

    def candidates(self) -> tuple[Candidate, ...]:
        """Return the last state, and the best one if it is another: in the order in which they are asked for."""
        if self.best is None or self.best.step == self.step:
            return (self.last(),)
        return self.last(), self.best

    def keep_if_best(self) -> None:
        """Remember this state if it meets every threshold, within its allowance, at less KL than any before."""
        if self.setup.frontier is not None:
            return  # no one KL tells how good a whole frontier is
        window = self.setup.monitor.means()
        constraints = self.setup.lagrangian.constraints
        if window is None or not len(window[1]):
            return
        if (window[1] > [c.allowance / c.scale for c in constraints]).any():
            return
        if self.best is None or window[0] < self.best.kl:
            last = self.last()
            self.best = Best(
                step=self.step,
                kl=window[0],
                parameters={name: tensor.detach().clone() for name, tensor in last.parameters.items()},
                # While rates are constant the parameters lag behind multipliers that still move.
                multipliers=last.multipliers if self.averaged_steps else None,
            )

    @contextmanager
    def using(self, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        """Put other parameters into the policy, and the current ones back after."""
        current = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._set(parameters)
        try:
            yield
        finally:
            self._set(current)

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def pack(self, collective: Collective) -> checkpoint.Files:
        """Return the checkpoint's files. Every worker must call it: the random states of all are in it."""
        generators = collective.gather(torch.get_rng_state()[None])
        tensors = (
            checkpoint.prefixed("network", dict(self.parameters))
            | checkpoint.prefixed("averaged", self.averaged)
            | checkpoint.optimizer_tensors(self.optimizer)
            | checkpoint.prefixed("best", {} if self.best is None else dict(self.best.parameters))
            | {"generators": generators}
        )
        return checkpoint.pack(
            tensors,
            {
                "step": self.step,
                "round": [self.round, self.round_from, self.ended],
                "anneal_from": self.anneal_from,
                "averaged_steps": self.averaged_steps,
                "averaged_multipliers": self.averaged_multipliers,
                "skipped": [self.skipped, self.skipped_in_row],
                "splits": self.splits,
                "notes": self.notes,
                "best": None
                if self.best is None
                else {"step": self.best.step, "kl": self.best.kl, "multipliers": self.best.multipliers},
                "violations": self.violations,
                "pending": self.pending,
                "history": [dataclasses.asdict(record) for record in self.history],
                "seconds": self.seconds,
                "scaler": self.scaler.state_dict(),
                "dual": self.setup.dual.state(),
                "monitor": self.setup.monitor.state(),
                "density": None if self.setup.frontier is None else self.setup.frontier.density,
            },
        )

    def unpack(self, files: checkpoint.Files, collective: Collective) -> None:
        """Continue from ``pack``'s files."""
        tensors, state = checkpoint.unpack(files)
        self._set(checkpoint.stripped("network", tensors))
        for name, tensor in checkpoint.stripped("averaged", tensors).items():
            self.averaged[name].copy_(tensor)
        if state["best"] is not None:
            self.best = Best(**state["best"], parameters=checkpoint.stripped("best", tensors))
        checkpoint.load_optimizer(self.optimizer, tensors)
        generators = tensors["generators"]
        if len(generators) == collective.world_size:
            # A copy: torch 2.13 crashes on a state that is a view into a larger tensor.
            torch.set_rng_state(generators[collective.rank].clone())
        self._load_counters(state)

    def _load_counters(self, state: dict[str, Any]) -> None:
        self.step, self.anneal_from = state["step"], state["anneal_from"]
        self.round, self.round_from, self.ended = state.get("round", (1, 0, False))
        self.averaged_steps = state["averaged_steps"]
        self.averaged_multipliers = state["averaged_multipliers"]
        self.skipped, self.skipped_in_row = state["skipped"]
        self.splits, self.notes = state["splits"], state["notes"]
        self.scaler.load_state_dict(state["scaler"])
        self.violations, self.pending = state["violations"], state["pending"]
        self.history = [StepRecord(**record) for record in state["history"]]
        self.seconds = state["seconds"]
        self.setup.dual.load(state["dual"])
        self.setup.monitor.load(state["monitor"])
        if self.setup.frontier is not None:
            self.setup.frontier.lean(state.get("density"))


def _optimizer(training: TrainingConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return Adam, or Adam with moments in 8 bits.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    if training.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=training.learning_rate, betas=_BETAS)
    try:
        bitsandbytes: Any = importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ValueError(
            "training.optimizer: adam_8bit needs the package bitsandbytes, which is not installed: pip install "
            "'cdsweep[quantise]'; adam does without"
        ) from error
    optimizer: torch.optim.Optimizer = bitsandbytes.optim.Adam8bit(
        parameters, lr=training.learning_rate, betas=_BETAS
    )
    return optimizer
