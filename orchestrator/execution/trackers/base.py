"""What a tracker is told, and by whom it is written."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainers.config import TrialJob

Value = str | int | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedTrial:
    """A trial, as a tracker shows it."""

    sweep: str
    sweep_id: str
    """See ``SweepStore.tracked_as``: what a run of an earlier sweep of the same name does not have."""
    trial_id: str
    method: str
    parameters: Mapping[str, Value]
    """Method, seed, thresholds and weights in reward units, and the main settings of training."""

    @property
    def name(self) -> str:
        """Of its run."""
        return f"{self.sweep}/{self.trial_id}"

    @property
    def tags(self) -> dict[str, str]:
        """The tags that all trackers share with the gauges."""
        return {"sweep": self.sweep, "trial": self.trial_id, "method": self.method}


class Tracker(ABC):
    """Writes to one tracker. All calls come from one thread of its own, and may be slow or fail."""

    name: str

    @abstractmethod
    def begin(self, trial: TrackedTrial) -> int:
        """Begin a trial, or go on with one that an earlier attempt began.

        Returns:
            The last step that it has from before, whole, −1 if none: after a kill what followed the last checkpoint is
            told again.
        """

    @abstractmethod
    def log(self, trial: TrackedTrial, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a logged step; steps only go up."""

    @abstractmethod
    def end(self, trial: TrackedTrial, status: str, row: Mapping[str, Value]) -> None:
        """End a trial.

        Args:
            trial: That began.
            status: ``succeeded``, ``failed``, ``infeasible``, or ``interrupted`` where it goes on some other time.
            row: What its row in ``trials`` says; empty if it was interrupted.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing left
        """Finish writing."""


def tracked(job: TrialJob, sweep: str, sweep_id: str) -> TrackedTrial:
    """Return what trackers show of a job."""
    config = job.config
    parameters: dict[str, Value] = {
        "sweep": sweep,
        "trial": job.trial_id,
        "method": config.method,
        "seed": config.seed,
    }
    parameters |= {f"threshold_{name}": value for name, value in job.thresholds.items()}
    parameters |= {f"weight_{name}": value for name, value in config.weights.items()}
    training = config.training
    parameters |= {
        "steps": training.steps,
        "batch_per_worker": training.batch_per_worker,
        "learning_rate": training.learning_rate,
        "primal": training.primal,
        "duals": config.duals.kind,
    }
    if job.base is not None:
        parameters["base_trial"] = job.base
    return TrackedTrial(
        sweep=sweep, sweep_id=sweep_id, trial_id=job.trial_id, method=config.method, parameters=parameters
    )


def plain_row(row: Mapping[str, Any]) -> dict[str, Value]:
    """Return what a tracker can show of a row of ``trials``: its numbers, flags and short texts."""
    dropped = {"trial_id", "method", "adapter", "started_at", "finished_at", "notes"}
    return {
        key: value
        for key, value in row.items()
        if key not in dropped and isinstance(value, (bool, int, float, str))
    }
