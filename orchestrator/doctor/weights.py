"""Weights of the models and rewards of a spec: in a directory, in the hub's cache, or still to be fetched."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from orchestrator.doctor.finding import Finding, Patient
from orchestrator.plan import base_config
from orchestrator.spec import SweepSpec, adapter_directory, hub_answers
from trainers.config import EMBEDDED, SHIPPED, RewardConfig
from trainers.pipelines.families import family_of
from trainers.pipelines.files import index_of
from trainers.reward_parameters import IMAGE_REWARD_PARAMETERS

_TENSORS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Something to be loaded."""

    what: str
    """Who needs it."""
    name: str
    """A hub id or a path."""
    kind: Literal["pipeline", "weights", "processor"]
    revision: str | None = None


def check_weights(patient: Patient) -> Iterator[Finding]:
    """Look at whether everything that the spec loads is here."""
    if patient.spec is None:
        return
    seen: set[tuple[str, str]] = set()
    for source in sources(patient.spec):
        if (source.name, source.kind) not in seen:
            seen.add((source.name, source.kind))
            yield _finding(source)


def sources(spec: SweepSpec) -> Iterator[Source]:
    """Yield what a spec loads, shipped weights left out."""
    config = base_config(spec)
    for part in config.model.constituents:
        if part.adapter is not None:
            path = str(adapter_directory(part.adapter))
            yield Source(what=f"model {part.name}", name=path, kind="weights")
    for place, loaded in config.model.parts.items():
        if loaded.pretrained not in (None, *SHIPPED):
            what = place.replace("models.", "model ")
            yield Source(what=what, name=str(loaded.pretrained), kind="pipeline", revision=loaded.revision)
    yield from _of_rewards(config.scored)


def _of_rewards(rewards: Iterable[RewardConfig]) -> Iterator[Source]:
    for reward in rewards:
        if reward.kind not in IMAGE_REWARD_PARAMETERS:
            continue  # analytic, or of another package, which knows its own
        parameters = IMAGE_REWARD_PARAMETERS[reward.kind].model_validate(reward.parameters)
        for key in ("model", "clip", "processor"):
            name = getattr(parameters, key, None)
            if name not in (None, EMBEDDED):
                kind: Literal["weights", "processor"] = "processor" if key == "processor" else "weights"
                yield Source(what=f"reward {reward.name}, {key}", name=str(name), kind=kind)


def _finding(source: Source) -> Finding:
    name = f"weights of {source.what}"
    path = Path(source.name)
    if path.is_absolute() or path.exists():
        if path.is_file() or (path.is_dir() and _holds(path, source.kind)):
            return Finding(name=name, status="ok", found=f"{source.name} is here")
        found = f"{source.name} {'lacks weights' if path.exists() else 'is not here'}"
        return Finding(
            name=name, status="fail", found=found, mend="write the path of a directory that has them"
        )
    snapshot = _snapshot(source)
    if snapshot is not None and _holds(snapshot, source.kind):
        return Finding(name=name, status="ok", found=f"{source.name} is in the cache")
    fetch = f"hf download {source.name}" + (f" --revision {source.revision}" if source.revision else "")
    if constants.HF_HUB_OFFLINE:
        found = f"{source.name} is not in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set"
        mend = f"unset HF_HUB_OFFLINE, or run `{fetch}` where the hub can be reached and copy the cache"
        return Finding(name=name, status="fail", found=found, mend=mend)
    if not hub_answers():
        found = (
            f"{source.name} is not in {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} cannot be reached"
        )
        mend = f"run `{fetch}` where the hub can be reached (HF_ENDPOINT names another), and copy the cache"
        return Finding(name=name, status="fail", found=found, mend=mend)
    found = f"{source.name} is not in the cache; it is downloaded when the sweep starts"
    return Finding(name=name, status="warn", found=found, mend=f"to see now whether it can be: `{fetch}`")


def _snapshot(source: Source) -> Path | None:
    """Return the directory in the hub's cache that holds the revision of a repository, if there is one."""
    try:
        return Path(snapshot_download(source.name, revision=source.revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _holds(folder: Path, kind: str) -> bool:
    """Whether a folder has what is to be loaded, as far as names of files tell."""
    if kind == "pipeline":
        folders = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        family = family_of(index_of(folder).get("_class_name"), folders)
        return (
            family is not None
            and (folder / "model_index.json").is_file()
            and all(_holds(folder / part, "weights") for part in family.weighted)
        )
    try:
        names = [file.name for file in folder.iterdir() if file.is_file()]
    except OSError:
        return False
    endings = _TENSORS if kind == "weights" else (".json", ".txt")
    return any(name.endswith(endings) for name in names)
