"""TensorBoard, through the callback that Ray Tune has for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.execution.trackers.base import TrackedTrial, Tracker, Value

_PREFIX, _FINAL = "ray/tune/", "final"


@dataclass(eq=False)
class _Folder:
    """As much of a Tune trial as Ray's callback asks for; the trial itself writes to a folder nobody keeps."""

    local_path: str
    evaluated_params: dict[str, Any]

    def init_local_path(self) -> None:
        """Make the folder."""
        Path(self.local_path).mkdir(parents=True, exist_ok=True)


class TensorBoard(Tracker):
    """One folder of event files per trial, scalars under ``ray/tune/``, thresholds and method as hyper-parameters."""

    name = "tensorboard"

    def __init__(self, directory: Path) -> None:
        """Write below ``directory``."""
        from ray.tune.logger import TBXLoggerCallback

        self._directory = directory
        self._callback = TBXLoggerCallback()
        self._folders: dict[str, _Folder] = {}
        self._last: dict[str, int] = {}
        self._had: dict[str, dict[str, int]] = {}

    def begin(self, trial: TrackedTrial) -> int:
        """Open an event file; one of an earlier attempt stays beside it."""
        self._had[trial.trial_id] = last_steps(self._directory / trial.trial_id)
        folder = _Folder(str(self._directory / trial.trial_id), dict(trial.parameters))
        self._folders[trial.trial_id] = folder
        self._callback.log_trial_start(folder)
        return min(self._had[trial.trial_id].values(), default=-1)

    def log(self, trial: TrackedTrial, step: int, metrics: Mapping[str, float]) -> None:
        """Write scalars."""
        self._last[trial.trial_id] = step
        had = self._had[trial.trial_id]  # a killed writer may have left a part of its last step
        self._result(trial, step, {key: value for key, value in metrics.items() if step > had.get(key, -1)})

    def end(self, trial: TrackedTrial, status: str, row: Mapping[str, Value]) -> None:  # noqa: ARG002 - the row has it
        """Write the row as scalars and hyper-parameters' metrics, and close the file."""
        numbers = {key: float(value) for key, value in row.items() if not isinstance(value, str)}
        if numbers:
            step = int(numbers.get("steps", self._last.get(trial.trial_id, 0)))
            self._result(trial, step, {_FINAL: numbers})
        self._callback.log_trial_end(self._folders.pop(trial.trial_id))

    def _result(self, trial: TrackedTrial, step: int, values: Mapping[str, Any]) -> None:
        # Ray's callback takes the step from its own key, and writes none of that.
        self._callback.log_trial_result(
            step, self._folders[trial.trial_id], {"training_iteration": step, **values}
        )


def last_steps(folder: Path) -> dict[str, int]:
    """The last step that event files have of each metric of a trial; what it came to is no step."""
    files = sorted(folder.glob("events.out.tfevents.*"))
    if not files:
        return {}
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    last: dict[str, int] = {}
    for file in files:
        for event in EventFileLoader(str(file)).Load():  # up to where a killed writer stopped
            for value in event.summary.value:
                tag = value.tag.removeprefix(_PREFIX)
                if tag != value.tag and not tag.startswith(f"{_FINAL}/"):
                    last[tag] = max(event.step, last.get(tag, -1))
    return last
