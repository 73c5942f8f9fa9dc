"""Weights & Biases: one run per trial, a group per sweep."""

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.execution.trackers.base import TrackedTrial, Tracker, Value
from orchestrator.spec import WandbSettings


class Wandb(Tracker):
    """Several runs side by side in this process; Ray's callback starts two processes for every trial."""

    name = "wandb"

    def __init__(self, settings: WandbSettings, directory: Path | None) -> None:
        """Keep runs below ``directory``, or where ``WANDB_DIR`` says."""
        os.environ.setdefault("WANDB_SILENT", "true")
        self._settings, self._directory = settings, directory
        self._runs: dict[str, Any] = {}

    def begin(self, trial: TrackedTrial) -> int:
        """Begin a run; online, that of an earlier attempt goes on; offline, another with its id has what follows."""
        import wandb

        mode = self._settings.mode or os.environ.get("WANDB_MODE")
        directory = None if self._directory is None or os.environ.get("WANDB_DIR") else str(self._directory)
        run = wandb.init(
            project=self._settings.project or os.environ.get("WANDB_PROJECT") or "cdsweep",
            entity=self._settings.entity,
            mode=mode,  # type: ignore[arg-type] # from the environment: W&B says what it allows
            dir=directory,
            id=f"{trial.sweep}-{trial.trial_id}-{trial.sweep_id}",
            name=trial.name,
            group=trial.sweep,
            job_type=trial.method,
            tags=[f"{key}:{value}"[:64] for key, value in trial.tags.items()],
            config=dict(trial.parameters),
            resume=None if mode == "offline" else "allow",
            reinit="create_new",
            settings=wandb.Settings(console="off", init_timeout=60, x_disable_stats=True),
        )
        self._runs[trial.trial_id] = run
        if mode != "offline":
            return int(run.starting_step) - 1
        here = Path(run.dir).parent
        earlier = [folder for folder in here.parent.glob(f"offline-run-*-{run.id}") if folder != here]
        return max((last_step(file) for folder in earlier for file in folder.glob("run-*.wandb")), default=-1)

    def log(self, trial: TrackedTrial, step: int, metrics: Mapping[str, float]) -> None:
        """Write one step."""
        self._runs[trial.trial_id].log(dict(metrics), step=step)

    def end(self, trial: TrackedTrial, status: str, row: Mapping[str, Value]) -> None:
        """Put the row into the summary, and finish the run."""
        run = self._runs.pop(trial.trial_id)
        run.summary.update({f"final_{key}": value for key, value in row.items()} | {"status": status})
        run.finish(exit_code=1 if status == "failed" else 0)


_BLOCK, _HEADER = 32768, 7
"""Bytes of a block of LevelDB's log, and of the header of a part of a record: checksum, length, kind."""
_WHOLE, _LAST_PART = 1, 4


def last_step(file: Path) -> int:
    """The last step in the file of an offline run, −1 without any; its end may be missing, as after a kill."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined] # generated

    data, at, parts, last = file.read_bytes(), _HEADER, b"", -1  # W&B's own header is as long
    while at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:
            at += _BLOCK - at % _BLOCK  # too little room for another part
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + _HEADER])
        parts += data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if at > len(data):
            break
        if kind not in (_WHOLE, _LAST_PART):
            continue
        record, parts = Record.FromString(parts), b""
        for item in record.history.item:
            if "_step" in (item.key, *item.nested_key):
                last = max(last, int(item.value_json))
    return last
