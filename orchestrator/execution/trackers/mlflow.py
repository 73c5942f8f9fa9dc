"""MLflow: one run per trial, found again when a sweep is resumed."""

import os
import time
from collections.abc import Mapping

from orchestrator.execution.trackers.base import TrackedTrial, Tracker, Value
from orchestrator.spec import MLflowSettings

_ENDED = {"succeeded": "FINISHED", "failed": "FAILED", "infeasible": "FINISHED", "interrupted": "KILLED"}
_FINAL = "final_"


class MLflow(Tracker):
    """Batches of metrics by MLflow's own client; Ray's callback sends every number by itself."""

    name = "mlflow"

    def __init__(self, settings: MLflowSettings) -> None:
        """Take the server from the settings, or from MLflow's environment."""
        # Waiting and trying again is done by the outlet, which can be ended.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=settings.tracking_uri)
        self._experiment = settings.experiment
        self._runs: dict[str, str] = {}

    def begin(self, trial: TrackedTrial) -> int:
        """Make a run with parameters and tags, or go on with that of an earlier attempt."""
        from mlflow.entities import Param

        experiment = self._client.get_experiment_by_name(self._experiment)
        number = (
            self._client.create_experiment(self._experiment)
            if experiment is None
            else experiment.experiment_id
        )
        wanted = f"tags.sweep_id = '{trial.sweep_id}' and tags.trial = '{trial.trial_id}'"
        found = self._client.search_runs([number], wanted, max_results=1)
        if found:
            run = found[0].info.run_id
            self._client.update_run(run, status="RUNNING")
            last = max((self._last(run, key) for key in found[0].data.metrics), default=-1)
        else:
            tags = trial.tags | {"sweep_id": trial.sweep_id}
            run = self._client.create_run(number, tags=tags, run_name=trial.name).info.run_id
            params = [Param(key, str(value)) for key, value in trial.parameters.items()]
            self._client.log_batch(run, params=params)
            last = -1
        self._runs[trial.trial_id] = run
        return last

    def log(self, trial: TrackedTrial, step: int, metrics: Mapping[str, float]) -> None:
        """Send one batch."""
        self._send(trial, step, metrics)

    def end(self, trial: TrackedTrial, status: str, row: Mapping[str, Value]) -> None:
        """Send the row, its texts as tags, and end the run."""
        run = self._runs[trial.trial_id]
        numbers = {f"{_FINAL}{key}": float(value) for key, value in row.items() if not isinstance(value, str)}
        self._send(trial, int(numbers.get(f"{_FINAL}steps", 0)), numbers)
        for key, value in {**row, "status": status}.items():
            if isinstance(value, str):
                self._client.set_tag(run, key, value[:5000])
        self._client.set_terminated(run, _ENDED[status])
        del self._runs[trial.trial_id]

    def _last(self, run: str, metric: str) -> int:
        """The last step of a metric; what a trial came to is not one."""
        if metric.startswith(_FINAL):
            return -1
        return max((point.step for point in self._client.get_metric_history(run, metric)), default=-1)

    def _send(self, trial: TrackedTrial, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        if metrics:
            now = int(time.time() * 1000)
            batch = [Metric(key, value, now, step) for key, value in metrics.items()]
            self._client.log_batch(self._runs[trial.trial_id], metrics=batch)
