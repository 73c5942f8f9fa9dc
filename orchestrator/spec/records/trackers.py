"""Where the numbers of a sweep go beside its own files: experiment trackers.

They change nothing about the trials, so no trial id depends on them.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, Tag, ValidationInfo

from orchestrator.errors import UsageError
from orchestrator.spec.extras import missing_package
from orchestrator.spec.records.terms import by_key, told_apart
from orchestrator.spec.text.problems import Problem, raise_problems, suggestion
from trainers.config import Frozen

TENSORBOARD, MLFLOW, WANDB = "tensorboard", "mlflow", "wandb"
NAMES = (TENSORBOARD, MLFLOW, WANDB)
VARIABLE = "CDSWEEP_TRACKERS"
"""Environment variable with names of trackers, separated by commas, beside those of the spec."""

_PACKAGES = {TENSORBOARD: "tensorboardX", MLFLOW: "mlflow", WANDB: "wandb"}

Text = Annotated[str, Field(min_length=1, max_length=256)]


def _without_credentials(uri: str) -> str:
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise ValueError(f"is not a URI: {error}") from None
    if parts.username is not None or parts.password is not None:
        rule = (
            "must hold no user or password, which specs and dashboards show: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
        raise_problems([Problem(path=(), rule=rule)])  # without the value: terminals and logs are read too
    return uri


class TensorBoardSettings(Frozen):
    """Event files, one folder per trial."""

    directory: Text | None = None
    """By default ``tensorboard`` in the sweep's directory."""


class MLflowSettings(Frozen):
    """An MLflow server, one run per trial; user, password or token come from MLflow's own environment variables."""

    tracking_uri: (
        Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_without_credentials)] | None
    ) = None
    """By default what ``MLFLOW_TRACKING_URI`` says."""
    experiment: Text = "cdsweep"
    """Made if it is not there."""


class WandbSettings(Frozen):
    """Weights & Biases, one run per trial; the key comes from ``wandb login`` or ``WANDB_API_KEY``."""

    project: Text | None = None
    """By default what ``WANDB_PROJECT`` says, or cdsweep."""
    entity: Text | None = None
    """Team or user; by default the account's own."""
    mode: Literal["online", "offline"] | None = None
    """``offline`` keeps runs on disk for ``wandb sync``; by default what ``WANDB_MODE`` says, or online."""


class TensorBoardTracker(Frozen):
    """TensorBoard with settings."""

    tensorboard: TensorBoardSettings
    """Its settings."""


class MLflowTracker(Frozen):
    """MLflow with settings."""

    mlflow: MLflowSettings
    """Its settings."""


class WandbTracker(Frozen):
    """Weights & Biases with settings."""

    wandb: WandbSettings
    """Its settings."""


Tracker = Annotated[
    Annotated[Literal["tensorboard", "mlflow", "wandb"], Tag("<name>")]
    | Annotated[TensorBoardTracker, Tag("TensorBoardTracker")]
    | Annotated[MLflowTracker, Tag("MLflowTracker")]
    | Annotated[WandbTracker, Tag("WandbTracker")],
    told_apart(
        lambda value: (
            "<name>"
            if value in NAMES
            else by_key(tensorboard="TensorBoardTracker", mlflow="MLflowTracker", wandb="WandbTracker")(value)
        ),
        "tensorboard, mlflow, wandb, or one of them with settings, such as {mlflow: {tracking_uri: …}}",
        *NAMES,
    ),
]


def tracker_name(tracker: Tracker) -> str:
    """Return which tracker it is."""
    return tracker if isinstance(tracker, str) else next(iter(type(tracker).model_fields))


def _each_once(trackers: tuple[Tracker, ...], info: ValidationInfo) -> tuple[Tracker, ...]:
    names = [tracker_name(tracker) for tracker in trackers]
    problems = [
        Problem(path=(index,), rule=f"{name} is in the list twice")
        for index, name in enumerate(names)
        if name in names[:index]
    ]
    storage = info.data.get("storage", "")
    for index, tracker in enumerate(trackers):
        if tracker_name(tracker) == TENSORBOARD and "://" in storage and _directory(tracker) is None:
            rule = "the storage is not a directory: say where event files go with {tensorboard: {directory: DIR}}"
            problems.append(Problem(path=(index,), rule=rule, value="tensorboard"))
    if problems:
        raise_problems(problems)
    return trackers


def _directory(tracker: Tracker) -> str | None:
    return tracker.tensorboard.directory if isinstance(tracker, TensorBoardTracker) else None


Trackers = Annotated[tuple[Tracker, ...], AfterValidator(_each_once)]


def missing(tracker: Tracker) -> str | None:
    """Return what to install for a tracker that cannot be used here, or None."""
    name = tracker_name(tracker)
    return missing_package(_PACKAGES[name], name)


def missing_problems(trackers: Sequence[Tracker]) -> list[Problem]:
    """Return a problem for every tracker whose package is not installed."""
    found = ((index, tracker, missing(tracker)) for index, tracker in enumerate(trackers))
    return [
        Problem(path=("trackers", index), rule=f"{tracker_name(tracker)} {rule}")
        for index, tracker, rule in found
        if rule
    ]


def chosen_trackers(trackers: Sequence[Tracker], environment: Mapping[str, str]) -> tuple[Tracker, ...]:
    """Return the spec's trackers, and those that the environment names beside them.

    Raises:
        UsageError: The environment names something else, or a package is not installed.
    """
    found: dict[str, Any] = {tracker_name(tracker): tracker for tracker in trackers}
    for written in environment.get(VARIABLE, "").split(","):
        if name := written.strip():
            if name not in NAMES:
                raise UsageError(f"{VARIABLE} names {name!r}, which is no tracker{suggestion(name, NAMES)}")
            found.setdefault(name, name)
    for name, tracker in found.items():
        if rule := missing(tracker):
            raise UsageError(f"the tracker {name} {rule}")
    return tuple(found.values())
