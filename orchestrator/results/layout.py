"""Names of the files of one sweep, relative to ``STORAGE/NAME/``.

    spec.yaml  plan.json  baseline.json  baseline.parquet  state.json  stop.json  frontier.parquet  report.html
    units.parquet  bounds.parquet  preview.json  trackers.json
    trials/ID.parquet  history/ID.parquet  evaluations/ID.parquet  figures/  images/  adapters/ID/
    checkpoints/ID/SEQUENCE-step-STEP/{FILE, manifest.json}

Names that begin with a dot are unfinished writes; no reader looks at them.
"""

import re

from orchestrator.errors import UsageError

SPEC = "spec.yaml"
PLAN = "plan.json"
BASELINE = "baseline.json"
SAMPLES = "baseline.parquet"
STATE = "state.json"
STOP = "stop.json"
FRONTIER = "frontier.parquet"
REPORT = "report.html"
MANIFEST = "manifest.json"
BOUNDS = "bounds.parquet"
UNITS = "units.parquet"
PREVIEW = "preview.json"
STUDIES = "studies.log"
TRACKED = "trackers.json"
"""By which trackers tell this sweep from an earlier one of the same name."""

TRIALS = "trials"
PACKED_TRIALS = ".packed/trials.parquet"
HISTORY = "history"
EVALUATIONS = "evaluations"
FIGURES = "figures"
ADAPTERS = "adapters"
CARD = "README.md"
"""Beside an adapter: its model card."""
IMAGES = "images"
PRETRAINED_IMAGE = f"{IMAGES}/pretrained.png"
CHECKPOINTS = "checkpoints"

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_CHECKPOINT = re.compile(r"^(\d{6,})-step-(\d+)$")


def check_name(name: str, what: str) -> str:
    """Return ``name`` if it can be one path component; otherwise raise UsageError."""
    if not _NAME.match(name) or len(name) > 200:
        raise UsageError(
            f"{what} must be letters, digits, '.', '_' and '-', and begin with a letter or digit: {name!r}"
        )
    return name


def table(folder: str, trial_id: str) -> str:
    """Parquet file of one trial in ``trials``, ``history`` or ``evaluations``."""
    return f"{folder}/{check_name(trial_id, 'a trial id')}.parquet"


def adapter(trial_id: str) -> str:
    """Folder of the adapter of one trial."""
    return f"{ADAPTERS}/{check_name(trial_id, 'a trial id')}"


def image(trial_id: str) -> str:
    """Picture of one trial beside the pretrained model."""
    return f"{IMAGES}/{check_name(trial_id, 'a trial id')}.png"


def checkpoints(trial_id: str) -> str:
    """Folder of all checkpoints of one trial."""
    return f"{CHECKPOINTS}/{check_name(trial_id, 'a trial id')}"


def checkpoint(trial_id: str, sequence: int, step: int) -> str:
    """Folder of one checkpoint; ``sequence`` counts the saves of the trial, over all attempts."""
    return f"{checkpoints(trial_id)}/{sequence:06d}-step-{step}"


def parse_checkpoint(folder: str) -> tuple[int, int] | None:
    """``(sequence, step)`` of a checkpoint's folder name, or None if it is not one."""
    match = _CHECKPOINT.match(folder)
    return (int(match[1]), int(match[2])) if match else None
