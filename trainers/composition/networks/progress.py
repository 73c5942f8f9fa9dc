"""How far a student has been trained, among the state of its trial: killed, it goes on bit for bit."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainers.composition.state import Ascent
from trainers.trial_io import TrialIO
from trainers.workers import checkpoint

_PARAMETER = "parameter"


class Progress(Protocol):
    """Keeps the state of a training, and puts it back."""

    def restored(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]
    ) -> dict[str, Any] | None:
        """Put back what was kept; returns what was known beside it, or None where nothing was."""

    def keep(
        self,
        step: int,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        known: dict[str, Any],
    ) -> None:
        """Keep it after ``step`` steps, if it is time to."""


class _NotKept:
    """Keeps nothing."""

    def restored(self, *_: Any) -> None:
        """Return None."""

    def keep(self, *_: Any) -> None:
        """Do nothing."""


NOT_KEPT: Progress = _NotKept()


@dataclass(frozen=True)
class InTrial:
    """Among the checkpoints of a composition whose weights are found."""

    io: TrialIO
    state: Ascent
    every: int
    """Steps from one checkpoint to the next."""
    began: float = field(default_factory=time.monotonic)

    def restored(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]
    ) -> dict[str, Any] | None:
        """Put back what was kept; returns what was known beside it, or None where nothing was."""
        if self.state.student is None:
            return None
        tensors, known = self.state.student
        with torch.no_grad():
            for number, parameter in enumerate(parameters):
                parameter.copy_(tensors[f"{_PARAMETER}.{number}"])
        checkpoint.load_optimizer(optimizer, tensors)
        return known

    def keep(
        self,
        step: int,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        known: dict[str, Any],
    ) -> None:
        """Save a checkpoint of the trial with it, after those of the weights."""
        if step % self.every:
            return
        own: dict[str, Tensor] = {str(number): parameter for number, parameter in enumerate(parameters)}
        tensors = checkpoint.prefixed(_PARAMETER, own) | checkpoint.optimizer_tensors(optimizer)
        self.state.student = tensors, known
        # Whoever runs the trial adds up what this attempt took; a later one has it from the checkpoint.
        so_far = dataclasses.replace(self.state, seconds=self.state.seconds + time.monotonic() - self.began)
        self.io.save(self.state.step + step, so_far.files(), self.state.history)
