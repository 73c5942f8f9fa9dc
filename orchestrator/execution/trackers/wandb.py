"""Weights & Biases: one run per trial, a group per sweep."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.execution.trackers.base import TrackedTrial, Tracker, Value
from orchestrator.spec.trackers import WandbSettings


class Wandb(Tracker):
    """Several runs side by side in this process; Ray's callback starts two processes for every trial."""

    name = "wandb"

    def __init__(self, settings: WandbSettings, directory: Path | None) -> None:
        """Keep runs below ``directory``, or where ``WANDB_DIR`` says."""
        os.environ.setdefault("WANDB_SILENT", "true")
        self._settings, self._directory = settings, directory
        self._runs: dict[str, Any] = {}

    def begin(self, trial: TrackedTrial) -> None:
        """Begin a run; online, that of an earlier attempt goes on."""
        import wandb

        mode = self._settings.mode or os.environ.get("WANDB_MODE")
        directory = None if self._directory is None or os.environ.get("WANDB_DIR") else str(self._directory)
        self._runs[trial.trial_id] = wandb.init(
            project=self._settings.project or os.environ.get("WANDB_PROJECT") or "cdsweep",
            entity=self._settings.entity,
            mode=mode,  # type: ignore[arg-type] # from the environment: W&B says what it allows
            dir=directory,
            id=f"{trial.sweep}-{trial.trial_id}",
            name=trial.name,
            group=trial.sweep,
            job_type=trial.method,
            tags=[f"{key}:{value}"[:64] for key, value in trial.tags.items()],
            config=dict(trial.parameters),
            resume=None if mode == "offline" else "allow",
            reinit="create_new",
            settings=wandb.Settings(console="off", init_timeout=60, x_disable_stats=True),
        )

    def log(self, trial: TrackedTrial, step: int, metrics: Mapping[str, float]) -> None:
        """Write one step."""
        self._runs[trial.trial_id].log(dict(metrics), step=step)

    def end(self, trial: TrackedTrial, status: str, row: Mapping[str, Value]) -> None:
        """Put the row into the summary, and finish the run."""
        run = self._runs.pop(trial.trial_id)
        run.summary.update({f"final_{key}": value for key, value in row.items()} | {"status": status})
        run.finish(exit_code=1 if status == "failed" else 0)
