"""What the names in a spec stand for on this machine: what tells a trial apart from one of other weights or code.

A path may hold another pipeline tomorrow, a hub id another commit, a package another reward. So a spec that is read
from a file is given ``contents``: for every such name, by its place, the SHA-256 of what the path holds, the commit of
the hub id, or version and SHA-256 of the package. Trials carry them, and are known by them.

What cdsweep ships is the same for all of one version: the built-in rewards, estimators and samplers have no entry here,
and the tag of trial ids (``orchestrator.spec.identity``) changes when what they compute does.
"""

import importlib.resources
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.errors import SpecError
from orchestrator.spec.files.classes import find_module
from orchestrator.spec.files.digests import files_below, tree_digest
from orchestrator.spec.files.hub import commit_of, is_commit
from orchestrator.spec.files.pipelines import hub_id, pipeline_directory
from orchestrator.spec.records import registry
from orchestrator.spec.records.compositions import LEAST, base_of
from orchestrator.spec.records.constituents import PipelineModel
from orchestrator.spec.records.models import SweepSpec
from orchestrator.spec.records.rewards import resolve_rewards
from orchestrator.spec.text.problems import Problem
from trainers.config import (
    EMBEDDED,
    SHIPPED,
    BaseConfig,
    ConstituentConfig,
    ModelConfig,
    RewardConfig,
    TrialConfig,
)
from trainers.pipelines.files import defining_files
from trainers.reward_parameters import SERVED

UNKNOWN = "unknown"
"""In place of a commit that nothing tells."""

_SOURCES = ("model", "clip", "processor")
"""Parameters of the built-in rewards that name weights."""
_READ = (".json", ".txt", ".model", ".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""Endings of what a reward reads in a directory of weights."""
_OF_CODE = ("training.primal", "duals.kind")
"""Places beside ``rewards.NAME`` whose content is the code of a package."""
_CLIP = ("trainers.models.embedded", "weights/clip")

Model = TypeVar("Model", ModelConfig, BaseConfig, ConstituentConfig)

Locate = Callable[[str], str]
"""From a path as it is written to where it is here."""


def contents_of(spec: SweepSpec, locate: Locate = lambda path: path) -> dict[str, str]:
    """Return what the names of a spec stand for here, by place; without those that are not here.

    Places are ``model``, ``models.NAME``, ``rewards.NAME.PARAMETER``, ``rewards.NAME`` (the code of a reward of another
    package), ``training.primal`` and ``duals.kind``.

    Args:
        spec: Valid.
        locate: Where a path is that lies elsewhere on this machine.

    Raises:
        SpecError: Something that is here cannot be read.
    """
    try:
        return dict(_contents(spec, locate))
    except (OSError, ValueError) as error:
        raise SpecError(f"what the spec names cannot be read: {error}") from error


def _contents(spec: SweepSpec, locate: Locate) -> Iterator[tuple[str, str]]:
    yield from _pipelines(spec, locate)
    for reward in resolve_rewards(spec).everything.values():
        for end, value in _of_reward(reward, locate):
            yield f"rewards.{reward.name}{end}", value
    for place, group, name in (
        (_OF_CODE[0], registry.PRIMAL_ESTIMATORS, spec.training.primal),
        (_OF_CODE[1], registry.DUAL_OPTIMIZERS, spec.duals.kind),
    ):
        if (code := _code(group, name)) is not None:
            yield place, code


def with_contents(spec: SweepSpec) -> tuple[SweepSpec, list[Problem]]:
    """Return a spec with its contents, and what is wrong with those that were written in it.

    A commit that is written is meant; anything else must be what is here.
    """
    found = contents_of(spec)
    written = {place: value for place, value in spec.contents.items() if value != UNKNOWN}
    problems = [
        Problem(
            path=("contents", place),
            rule="is the place of nothing in this spec that has contents",
            at_key=True,
        )
        for place in written
        if place not in found
    ]
    for place, (meant, here) in _changed(written, found).items():
        rule = f"has changed: here it is {here}, not what was meant"
        problems.append(Problem(path=("contents", place), rule=rule, value=meant))
    return spec.model_copy(update={"contents": found | written}), problems


def changes(spec: SweepSpec, locate: Locate = lambda path: path) -> dict[str, str]:
    """Return what is here and is no longer what a spec was planned with, by place."""
    here = contents_of(spec, locate)
    return {place: here[place] for place in _changed(spec.contents, here)}


def is_code(place: str) -> bool:
    """Whether a place is of the code of a package, not of weights."""
    plain = re.sub(r"\[[^]]*\]", "", place)  # a group may have a dot in its name
    return place in _OF_CODE or (plain.startswith("rewards.") and plain.count(".") == 1)


def told(spec: SweepSpec, changed: Mapping[str, str]) -> list[str]:
    """Say what has changed, a line each."""
    return [
        f"{place} has changed: it was {_short(spec.contents[place])}, and is {_short(here)}"
        for place, here in changed.items()
    ]


def pinned(model: ModelConfig, contents: Mapping[str, str]) -> ModelConfig:
    """Return a model whose hub ids are at the commits that the contents say."""
    return model.mapped(lambda place, part: _at(part, contents.get(place)))


def pinned_reward(reward: RewardConfig, contents: Mapping[str, str]) -> RewardConfig:
    """Return a reward with the commits of the hub ids that it names."""
    ends = {key: contents.get(f"rewards.{reward.name}.{key}") for key in _SOURCES}
    revisions = {key: commit for key, commit in ends.items() if commit is not None and is_commit(commit)}
    return reward.model_copy(update={"revisions": revisions})


def _at(model: Model, commit: str | None) -> Model:
    """Return a model at a commit; one in a directory, which has a digest, as it is."""
    return model.model_copy(update={"revision": commit}) if is_commit(commit) else model


def model_identity(config: TrialConfig, *, differing: bool = False) -> dict[str, Any]:
    """Return a trial's model as plain data, for a hash: what is known by its content is so wherever it lies.

    Args:
        config: Of the trial.
        differing: Leave out what has its default.
    """
    data: dict[str, Any] = config.model.model_dump(mode="json", exclude_none=True, exclude_defaults=differing)
    composition = data.get("composition")
    parts = {"model": data if composition is None else composition.get("base", {})}
    if composition is not None:
        parts |= {f"models.{part['name']}": part for part in composition["models"]}
    for place, part in parts.items():
        digest = config.contents.get(place)
        if digest is not None and not is_commit(digest) and part.get("pretrained") not in SHIPPED:
            part.pop("pretrained", None)
        if "digest" in part:
            del part["adapter"]
    return data


def _changed(meant: Mapping[str, str], here: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return places whose content is another; commits are loaded as they are meant, wherever a branch has gone."""
    return {
        place: (value, here[place])
        for place, value in meant.items()
        if here.get(place, UNKNOWN) not in {UNKNOWN, value} and not is_commit(value)
    }


def _short(content: str) -> str:
    """Return a digest's beginning."""
    *name, digest = content.split(" ")
    return " ".join([*name, digest[:12]])


# Pipelines and weights -------------------------------------------------------------------------------


def _pipelines(spec: SweepSpec, locate: Locate) -> Iterator[tuple[str, str]]:
    parts: list[tuple[str, BaseConfig | PipelineModel]] = []
    if (base := base_of(spec)) is not None:
        parts.append(("model", base))
    parts += [
        (f"models.{name}", model)
        for name, model in (spec.models or {}).items()
        if isinstance(model, PipelineModel)
    ]
    for place, part in parts:
        directory = pipeline_directory(locate(part.pretrained))
        if directory is not None:
            yield place, tree_digest(directory, defining_files(directory, part.variant))
        elif hub_id(part.pretrained) is not None:
            yield place, commit_of(part.pretrained, part.revision) or UNKNOWN


def _of_reward(reward: RewardConfig, locate: Locate) -> Iterator[tuple[str, str]]:
    """Yield what a reward's parameters name, and its code where it is of another package."""
    if reward.kind in SERVED:
        return  # whose weights are elsewhere
    if reward.kind == LEAST or reward.kind in registry.REWARD_KINDS:
        for key in _SOURCES:
            source = reward.parameters.get(key)
            if isinstance(source, str) and reward.kind != LEAST:
                content = _weights(locate(source))
                if content is None and hub_id(source) is not None:
                    content = commit_of(source, None) or UNKNOWN
                if content is not None:
                    yield f".{key}", content
        return
    if (code := _code(registry.REWARDS, reward.kind)) is not None:
        yield "", code
    for key, value in reward.parameters.items():
        if isinstance(value, str) and "/" in value and (content := _weights(locate(value))) is not None:
            yield f".{key}", content


def _weights(source: str) -> str | None:
    """Return the digest of a file or a directory of weights; None for what is not here."""
    package, folder = _CLIP
    path = Path(str(importlib.resources.files(package))) / folder if source == EMBEDDED else Path(source)
    try:
        if path.is_file():
            return tree_digest(path.parent, [path])
        if not path.is_dir():
            return None
    except OSError:  # longer than a path may be
        return None
    return tree_digest(path, [file for file in files_below(path) if file.name.endswith(_READ)])


# Code of other packages ------------------------------------------------------------------------------


def _code(group: str, name: str) -> str | None:
    """Return distribution, version and digest of the code behind a name of another package; None for our own."""
    if name in registry.BUILT_IN[group]:
        return None
    entry = next(iter(entry_points(group=group, name=name)), None)
    if entry is None:
        return None
    distribution = entry.dist
    label = "?" if distribution is None else f"{distribution.name} {distribution.version}"
    place = _source(entry)
    if place is None:
        return label
    files = files_below(place) if place.is_dir() else [place]
    return f"{label} {tree_digest(place.parent, files)}"


def _source(entry: EntryPoint) -> Path | None:
    """Return the package that a class is in, or its module where that stands alone, without importing either.

    A helper beside the module counts, so it is the topmost package that is no namespace.
    """
    parts = entry.module.split(".")
    path: list[str] | None = None
    for depth in range(1, len(parts) + 1):
        spec = find_module(".".join(parts[:depth]), path)
        if spec is None:
            return None
        if spec.origin is not None and spec.has_location:
            origin = Path(spec.origin)
            return origin.parent if spec.submodule_search_locations is not None else origin
        path = list(spec.submodule_search_locations or [])
    return None
