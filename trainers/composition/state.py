"""What changes while weights are found, and how it is saved and put back."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.types import FloatArray, StepRecord
from trainers.workers import checkpoint

_STUDENT = "student"


@dataclass(kw_only=True)
class Ascent:
    """Weights and multipliers, and how they came to be."""

    weights: FloatArray
    """``λ``, ``[m]``."""
    tilt: FloatArray
    """``μ``, ``[R]``."""
    step: int = 0
    seconds: float = 0.0
    rows: list[dict[str, list[float]]] = field(default_factory=list)
    """Weights, multipliers, KLs and rewards of every step."""
    history: list[StepRecord] = field(default_factory=list)
    student: tuple[dict[str, Tensor], dict[str, Any]] | None = None
    """Of the one adapter, whose training begins once the weights are found: tensors, and numbers."""

    def files(self) -> checkpoint.Files:
        """Return the checkpoint's files."""
        state: dict[str, Any] = {
            "step": self.step,
            "seconds": self.seconds,
            "rows": self.rows,
            "history": [dataclasses.asdict(record) for record in self.history],
        }
        tensors = {"weights": torch.tensor(self.weights), "tilt": torch.tensor(self.tilt)}
        if self.student is not None:
            trained, state["student"] = self.student
            tensors |= checkpoint.prefixed(_STUDENT, trained)
        return checkpoint.pack(tensors, state)

    def load(self, files: checkpoint.Files) -> None:
        """Continue from ``files()``."""
        tensors, state = checkpoint.unpack(files)
        self.weights, self.tilt = tensors["weights"].numpy(), tensors["tilt"].numpy()
        self.step, self.seconds, self.rows = state["step"], state["seconds"], state["rows"]
        self.history = [StepRecord(**record) for record in state["history"]]
        if "student" in state:
            self.student = checkpoint.stripped(_STUDENT, tensors), state["student"]

    def mean(self, key: str, last: int) -> FloatArray:
        """Return the mean of ``weights``, ``tilt``, ``kl`` or ``rewards`` over the last rows."""
        return np.asarray(np.mean([row[key] for row in self.rows[-last:]], axis=0))

    def averaged(self) -> tuple[FloatArray, FloatArray]:
        """Return weights and multipliers, means over the later half of the steps if there were any."""
        weights, tilt = self.weights, self.tilt
        if self.rows:
            last = max(1, len(self.rows) // 2)
            weights, tilt = self.mean("weights", last), self.mean("tilt", last)
        return weights / weights.sum(), tilt
