"""Names of the files of one sweep, relative to ``STORAGE/NAME/``.

    spec.yaml  plan.json  baseline.json  baseline.parquet  journal.json  journal.parquet  frontier.parquet
    units.parquet  bounds.parquet  preview.json  trackers.json  report.html  lease/NUMBER.{json, stop}
    trials/ID.parquet  history/ID.parquet  evaluations/ID.parquet  answers/ID.parquet  figures/  images/  adapters/ID/
    checkpoints/ID/SEQUENCE-step-STEP/{FILE, manifest.json}

What a further round of a trial comes to is called ID.round-N in ``evaluations``, ``answers``, ``images`` and
``adapters`` until it takes the place of what there was: the trial's row has ``beside_round``, so nothing is mixed.
Names that begin with a dot are unfinished writes; no reader looks at them.
"""

import re

from orchestrator.errors import UsageError

SPEC = "spec.yaml"
PLAN = "plan.json"
BASELINE = "baseline.json"
SAMPLES = "baseline.parquet"
JOURNAL = "journal.json"
"""How far the sweep is, as its driver last said."""
ROWS = "journal.parquet"
"""Rows of finished trials that the driver has seen, so that a reader opens one file for all of them."""
LEASES = "lease"
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
HISTORY = "history"
EVALUATIONS = "evaluations"
ANSWERS = "answers"
FIGURES = "figures"
ADAPTERS = "adapters"
IMAGES = "images"
PRETRAINED_IMAGE = f"{IMAGES}/pretrained.png"
CHECKPOINTS = "checkpoints"

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_CHECKPOINT = re.compile(r"^(\d{6,})-step-(\d+)$")
_ROUND = re.compile(r"\.round-\d+$")
_FILE = re.compile(r"(\.at-\d+)?\.(parquet|png)$")


def check_name(name: str, what: str) -> str:
    """Return ``name`` if it can be one path component; otherwise raise UsageError."""
    if not _NAME.match(name) or len(name) > 200:
        raise UsageError(
            f"{what} must be letters, digits, '.', '_' and '-', and begin with a letter or digit: {name!r}"
        )
    return name


def lease(number: int) -> str:
    """What the driver of this number leaves, counted over all drivers of the sweep."""
    return f"{LEASES}/{number:06d}.json"


def stop_request(number: int) -> str:
    """There if the driver of this number is asked to stop."""
    return f"{LEASES}/{number:06d}.stop"


def of_round(trial_id: str, rounds: int) -> str:
    """What a round of one trial leaves is called; the first is called like the trial."""
    name = check_name(trial_id, "a trial id")
    return name if rounds == 1 else f"{name}.round-{rounds}"


def trial_of(name: str) -> str:
    """Id of the trial that has left what is called so in a round."""
    return _ROUND.sub("", name)


def name_of(file: str) -> str:
    """What the round that has left a table or a picture calls it."""
    return _FILE.sub("", file)


def table(folder: str, trial_id: str, rounds: int = 1) -> str:
    """Parquet file of one trial in ``trials``, ``history``, or of a round in ``evaluations`` or ``answers``."""
    return f"{folder}/{of_round(trial_id, rounds)}.parquet"


def adapter(trial_id: str, rounds: int = 1) -> str:
    """Folder of the adapter of one trial."""
    return f"{ADAPTERS}/{of_round(trial_id, rounds)}"


def image(trial_id: str, rounds: int = 1) -> str:
    """Picture of one trial beside the pretrained model."""
    return f"{IMAGES}/{of_round(trial_id, rounds)}.png"


def answer_image(trial_id: str, place: int, rounds: int = 1) -> str:
    """Strip of images of a trial for a box of thresholds, at one of those that it was evaluated at."""
    return f"{IMAGES}/{of_round(trial_id, rounds)}.at-{place:03d}.png"


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
