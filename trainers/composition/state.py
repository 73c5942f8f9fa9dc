"""What changes while weights are found, and how it is saved and put back."""

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import torch

from trainers.types import FloatArray, StepRecord
from trainers.workers import checkpoint


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

    def files(self) -> checkpoint.Files:
        """Return the checkpoint's files."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "rows": self.rows,
            "history": [dataclasses.asdict(record) for record in self.history],
        }
        return checkpoint.pack(
            {"weights": torch.tensor(self.weights), "tilt": torch.tensor(self.tilt)}, state
        )

    def load(self, files: checkpoint.Files) -> None:
        """Continue from ``files()``."""
        tensors, state = checkpoint.unpack(files)
        self.weights, self.tilt = tensors["weights"].numpy(), tensors["tilt"].numpy()
        self.step, self.seconds, self.rows = state["step"], state["seconds"], state["rows"]
        self.history = [StepRecord(**record) for record in state["history"]]

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
