"""Short trials of a Gaussian that are taken up again after their end, and the thresholds that a box asks for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from trainers.alignment.boxed.frontier import Frontier
from trainers.types import FloatArray

SHORT: dict[str, dict[str, Any]] = {
    "sampling": {"steps": 8},
    "training": {
        "steps": 24,
        "batch_per_worker": 64,
        "width": 16,
        "checkpoint_every": 5,
        "learning_rate": 1e-2,
    },
    "convergence": {"window": 6},
}
"""Sections of their specs; of the evaluation each says its own."""


@contextmanager
def thresholds_asked() -> Iterator[list[FloatArray]]:
    """Yield a list that gets the thresholds ``[n, m]`` of every draw."""
    found, ask = list[FloatArray](), Frontier.ask

    def noted(self: Frontier, *args: Any) -> Any:
        asked = ask(self, *args)
        assert asked.thresholds is not None
        found.append(asked.thresholds)
        return asked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Frontier, "ask", noted)
        yield found
