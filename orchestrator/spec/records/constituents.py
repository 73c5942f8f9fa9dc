"""Models that are composed, as ``models`` of a spec lists them: mixtures, adapters, prompts, pipelines.

An adapter is a file, so a spec names it by a path, and a trial by the digest of what it does: the same adapter gives
the same trials wherever it lies. No torch is needed to look at one: the format begins with a header in JSON.
"""

import importlib.resources
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, Tag, ValidationInfo, field_validator

from orchestrator.spec.files.prompts import DIRECTORY, MAX_LENGTH
from orchestrator.spec.records.terms import Reward, by_key, reward_label, told_apart
from orchestrator.spec.text.problems import KeyPath, Problem, raise_problems, refuse_twice, suggestion
from trainers.adapters.digest import adapter_digest
from trainers.adapters.files import WEIGHTS
from trainers.adapters.header import header_of
from trainers.adapters.reading import read_adapter
from trainers.config import ConstituentConfig, Frozen, MixtureConfig, Variant

FORMS = {
    "mixture": "MixtureModel",
    "adapter": "AdapterModel",
    "prompt": "PromptModel",
    "pretrained": "PipelineModel",
}
"""The key that makes each form of a model."""

_PACKAGE, _FOLDER = "trainers.models.embedded", "adapters"


def form_of(value: Any) -> str | None:
    """Return the name of the form that plain data has, or None."""
    return by_key(**FORMS)(value)


def _distinct(rewards: tuple[Reward, ...]) -> tuple[Reward, ...]:
    refuse_twice([reward_label(reward, None) for reward in rewards], "is in the list twice", rewards)
    return rewards


Rewards = Annotated[tuple[Reward, ...], AfterValidator(_distinct)]


class MixtureModel(Frozen):
    """An exact model of a composition."""

    mixture: MixtureConfig
    """An exact Gaussian mixture."""


class PipelineModel(Frozen):
    """A network of its own, with the latents and the scheduler of the others."""

    pretrained: str = Field(min_length=1, max_length=1024)
    """``embedded`` (the shipped pipeline), a hub id, or a directory in diffusers format, of a known family."""
    revision: str | None = Field(default=None, min_length=1, max_length=200)
    """Branch, tag or commit of a hub id."""
    variant: Variant | None = None
    """Which files of weights are read where there are several, such as ``fp16``."""
    rewards: Rewards = ()
    """What it is good at: how much of each the composition retains is measured."""


def _spoken(text: str) -> str:
    if not text.strip():
        raise ValueError("a prompt must not be empty")
    return text


class PromptModel(Frozen):
    """A concept: the base, asked for one thing."""

    prompt: Annotated[str, AfterValidator(_spoken)] = Field(max_length=MAX_LENGTH)
    """What the base is asked to draw."""
    rewards: Rewards = ("clip",)
    """What scores images against this prompt; results call them ``REWARD_MODEL``."""


# Adapters --------------------------------------------------------------------------------------------


class AdapterModel(Frozen):
    """A LoRA adapter on the base."""

    adapter: str = Field(min_length=1, max_length=1024)
    """A shipped adapter, or a directory with a plain LoRA (names of diffusers, peft or kohya), looked for beside the
    spec and then in the working directory."""
    digest: str | None = Field(default=None, pattern="^[0-9a-f]{64}$", validate_default=True)
    """SHA-256 of its weights, and of settings beside them that change its effect. Filled in; where it is written, the
    adapter must have it."""
    rewards: Rewards = ()
    """What it was tuned for: how much of each the composition retains is measured."""

    @field_validator("adapter")
    @classmethod
    def _found(cls, name: str, info: ValidationInfo) -> str:
        """Return a shipped name as it is, and a directory by its absolute path.

        Without a directory of the spec, as for one that comes from a sweep, the adapter need not be there.
        """
        known = shipped_adapters()
        if name in known:
            return name
        beside: Path | None = (info.context or {}).get(DIRECTORY)
        reasons = []
        for place in dict.fromkeys(folder / name for folder in (beside, Path()) if folder is not None):
            if (mistake := _mistake(place)) is None:
                return str(place.absolute())
            reasons.append((place, mistake))
        if beside is not None:
            looked = " and ".join(f"{place} ({mistake})" for place, mistake in reasons)
            rule = f"is neither a shipped adapter nor a plain LoRA in a directory: looked for {looked}"
            hint = suggestion(name, known, "shipped")
            if name.startswith("~"):
                rule = "a ~ is not expanded: write the directory in full"
            elif meant := [mistake for place, mistake in reasons if _is_adapter(place)]:
                rule, hint = f"cannot be composed: {meant[0]}", ""
            raise_problems([Problem(path=(), rule=rule, value=name, hint=hint)])
        return name

    @field_validator("digest")
    @classmethod
    def _theirs(cls, written: str | None, info: ValidationInfo) -> str | None:
        name = info.data.get("adapter")
        if name is None or _mistake(directory := adapter_directory(name)) is not None:
            return written
        actual = adapter_digest(directory)
        if written not in {None, actual}:
            rule = (
                f"the adapter in {directory} has another digest, {actual}: it is not the one that was meant"
            )
            raise_problems([Problem(path=(), rule=rule, value=written)])
        return actual


def shipped_adapters() -> list[str]:
    """Return the names of the shipped adapters."""
    folder = _shipped()
    return (
        sorted(item.name for item in folder.iterdir() if (item / WEIGHTS).is_file())
        if folder.is_dir()
        else []
    )


def adapter_directory(name: str) -> Path:
    """Return where an adapter is that a resolved spec names."""
    return _shipped() / name if name in shipped_adapters() else Path(name)


def _shipped() -> Path:
    return Path(str(importlib.resources.files(_PACKAGE))) / _FOLDER


def _is_adapter(directory: Path) -> bool:
    """Return whether a directory has weights of one, of whatever form."""
    try:
        return bool(header_of(directory).shapes)
    except (OSError, ValueError):
        return False


def _mistake(directory: Path) -> str | None:
    """Return why a directory holds no adapter that composes, or None."""
    try:
        read_adapter(directory)
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:  # also a null byte in the path
        return str(error)
    return None


# What they have in common ----------------------------------------------------------------------------


ComposedModel = Annotated[
    Annotated[MixtureModel, Tag("MixtureModel")]
    | Annotated[AdapterModel, Tag("AdapterModel")]
    | Annotated[PromptModel, Tag("PromptModel")]
    | Annotated[PipelineModel, Tag("PipelineModel")],
    told_apart(form_of, "a mapping with the key 'mixture', 'adapter', 'prompt' or 'pretrained'", *FORMS),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """A reward that judges a model."""

    reward: str | dict[str, dict[str, Any]]
    """Its name, or its kind with parameters."""
    model: str
    """Name of the model."""
    prompt: str | None
    """The model's, where it is one."""
    name: None = None

    @property
    def label(self) -> str:
        """Name of the reward."""
        return reward_label(self.reward, None)


def judges(models: Mapping[str, ComposedModel] | None) -> Iterator[tuple[KeyPath, Judge]]:
    """Yield what judges every model, and where it stands."""
    for name, model in (models or {}).items():
        if isinstance(model, MixtureModel):
            continue
        prompt = model.prompt if isinstance(model, PromptModel) else None
        for index, reward in enumerate(model.rewards):
            yield ("models", name, "rewards", index), Judge(reward=reward, model=name, prompt=prompt)


def constituent(name: str, model: ComposedModel, rewards: tuple[str, ...]) -> ConstituentConfig:
    """Return a model as a trial takes it, judged by rewards of the trial."""
    form: dict[str, Any] = {key: value for key, value in model if key != "rewards"}
    return ConstituentConfig(name=name, **form, rewards=rewards)
