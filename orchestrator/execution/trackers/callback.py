"""Tune's events, handed to the trackers of a sweep."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from ray import tune

from orchestrator.errors import CdsweepError
from orchestrator.execution.trackers.base import Tracker, Value, plain_row, tracked
from orchestrator.execution.trackers.outlet import Outlet
from orchestrator.results.store import SweepStore
from orchestrator.spec import MLFLOW, TENSORBOARD, MLflowSettings, WandbSettings, tracker_name
from orchestrator.spec import Tracker as TrackerSpec
from trainers.config import TrialJob

_METRICS = ("kl", "lagrangian", "kkt_residual", "learning_rate", "seconds", "images_per_second")
_PREFIXES = ("reward_", "violation_", "multiplier_", "kl_")


class Trackers(tune.Callback):
    """Tells every tracker what happens to the trials, within the block in which they run."""

    def __init__(self, chosen: Sequence[TrackerSpec], store: SweepStore, say: Callable[[str], None]) -> None:
        """Open trackers; one that cannot be opened is left out, and ``say`` is told."""
        self._chosen, self._store, self._say = chosen, store, say
        self._outlets: list[Outlet] = []
        self._sweep_id = ""

    def __getstate__(self) -> dict[str, Any]:
        """Leave everything behind: Tune stores its callbacks, and nothing reads them back."""
        return {"_outlets": []}

    def __enter__(self) -> Self:
        """Begin."""
        if self._chosen:
            self._sweep_id = self._store.tracked_as()
        for each in self._chosen:
            try:
                tracker = open_tracker(each, self._store)
            except Exception as error:  # noqa: BLE001 - clients raise anything, and the sweep needs none of them
                self._say(
                    f"{tracker_name(each)} cannot be used: {str(error).splitlines()[0]}; the sweep goes on"
                )
            else:
                self._outlets.append(Outlet(tracker, self._say))
        return self

    def __exit__(self, *exception: object) -> None:
        """End, in a time that is bounded."""
        for outlet in self._outlets:
            outlet.close()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002 - Tune's signature
        """A trial was placed."""
        if self._outlets and _is_trained(trial):
            job = TrialJob.model_validate_json(trial.config["job"])
            shown = tracked(job, trial.config["sweep"], self._sweep_id)
            for outlet in self._outlets:
                outlet.begin(shown)

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002 - Tune's signature
        trials: list[Any],  # noqa: ARG002 - the same
        trial: Any,
        result: dict[str, Any],
        **info: Any,  # noqa: ARG002 - the same
    ) -> None:
        """A trial reported."""
        if "step" in result:
            for outlet in self._outlets:
                outlet.log(trial.config["trial_id"], int(result["step"]), step_metrics(result))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002 - Tune's signature
        """A trial ended, or was stopped to go on later."""
        self._end(trial, "interrupted")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002 - Tune's signature
        """A trial failed in every attempt."""
        self._end(trial, "failed")

    def _end(self, trial: Any, without_row: str) -> None:
        if not _is_trained(trial):
            return
        trial_id = trial.config["trial_id"]

        def row() -> Mapping[str, Value]:
            with suppress(CdsweepError):
                return plain_row(self._store.trial(trial_id) or {})
            return {}

        for outlet in self._outlets:
            outlet.end(trial_id, without_row, row)


def _is_trained(trial: Any) -> bool:
    """Whether it is no question to a trial that has ended."""
    return trial.config.get("asked") is None


def step_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a report that are the trial's own, not Tune's."""
    wanted = {key: value for key, value in result.items() if key in _METRICS or key.startswith(_PREFIXES)}
    return {key: float(v) for key, v in wanted.items() if isinstance(v, (int, float)) and math.isfinite(v)}


def open_tracker(tracker: TrackerSpec, store: SweepStore) -> Tracker:
    """Return what writes to a tracker of the spec."""
    name = tracker_name(tracker)
    settings = None if isinstance(tracker, str) else getattr(tracker, name)
    local = Path(store.url())
    if name == TENSORBOARD:
        from orchestrator.execution.trackers.tensorboard import TensorBoard

        directory = getattr(settings, "directory", None)
        if directory is None and not local.is_dir():
            raise ValueError("the storage is not a directory; say where with {tensorboard: {directory: DIR}}")
        apart = f"{store.name}-{store.tracked_as()}"
        return TensorBoard(local / "tensorboard" if directory is None else Path(directory) / apart)
    if name == MLFLOW:
        from orchestrator.execution.trackers.mlflow import MLflow

        return MLflow(settings or MLflowSettings())
    from orchestrator.execution.trackers.wandb import Wandb

    return Wandb(settings or WandbSettings(), local if local.is_dir() else None)
