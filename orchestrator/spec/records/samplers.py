"""Samplers of products of models: which one is the default, which ones are baselines, what goes with what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.spec.records.constituents import AdapterModel, ComposedModel, MixtureModel, PromptModel
from orchestrator.spec.text.problems import KeyPath, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from orchestrator.spec.records.models import SweepSpec
    from orchestrator.spec.records.terms import MinmaxObjective, Sampler
    from trainers.config import TrialConfig

NETWORK_SAMPLER = "fkc"
"""Default sampler of products of networks."""
MIXTURE_SAMPLER = "fkc"
"""Default sampler of products of mixtures."""

_OF_MIXTURES = ("ula", "mala", "uha", "hmc")
"""Samplers that need exact scores at every noise level."""
BASELINES: dict[str, tuple[type[ComposedModel], str]] = {
    "merged": (AdapterModel, "of adapters only: it adds up their weights in one network"),
    "joint": (PromptModel, "of prompts only: it asks for all of them in one"),
}
"""Samplers of one network, and what they are made of."""


def networks(models: Mapping[str, ComposedModel]) -> bool:
    """Return whether the models are networks, not mixtures."""
    return not any(isinstance(model, MixtureModel) for model in models.values())


def default_sampler(*, of_networks: bool) -> str:
    """Return the sampler of products of networks, or of mixtures."""
    return NETWORK_SAMPLER if of_networks else MIXTURE_SAMPLER


def sampled_by(config: TrialConfig, sampler: str | None) -> TrialConfig:
    """Return a trial with another sampler of its product, if one is given.

    The baselines are one network already, and are not distilled.
    """
    composition = config.model.composition
    if sampler is None or composition is None:
        return config
    changes: dict[str, object] = {"sampler": sampler}
    if sampler in BASELINES:
        changes["distillation"] = None
    model = config.model.model_copy(update={"composition": composition.model_copy(update=changes)})
    return config.model_copy(update={"model": model})


def sampler_problems(spec: SweepSpec, objective: MinmaxObjective) -> Iterator[Problem]:
    """Yield samplers that do not go with the models, the direction or the weights of a composition."""
    assert spec.models is not None, "a composition"
    written: dict[KeyPath, Sampler] = {}
    if objective.sampler is not None:
        written["objective", "sampler"] = objective.sampler
    for index, settings in spec.weightings:
        if settings.sampler is None:
            continue
        path: KeyPath = ("methods", index, "weighted", "sampler")
        sampler = written[path] = settings.sampler
        if objective.direction == "forward":
            rule = "goes with direction: reverse; an OR is sampled by choosing a model"
            yield Problem(path=path, rule=rule, value=sampler)
        elif sampler == "joint" and settings.weights != "equal":
            rule = "takes no weights: one prompt asks for everything; write weights: equal"
            yield Problem(path=path, rule=rule, value=sampler)
    for path, sampler in written.items():
        mistake = _mistake(sampler, spec.models, at_objective=path[0] == "objective")
        if mistake is not None:
            yield Problem(path=path, rule=mistake, value=sampler)


def _mistake(sampler: Sampler, models: Mapping[str, ComposedModel], *, at_objective: bool) -> str | None:
    """Return the rule that a sampler breaks with these models, or None."""
    if sampler in BASELINES:
        form, rule = BASELINES[sampler]
        if not all(isinstance(model, form) for model in models.values()):
            return rule
        if at_objective:
            return f"is a baseline: write - weighted: {{weights: equal, sampler: {sampler}}} under methods"
    elif networks(models) and sampler in _OF_MIXTURES:
        return "samples mixtures, whose scores are exact at every noise level; networks take fkc or score"
    return None


def uncomposed_problems(spec: SweepSpec) -> Iterator[Problem]:
    """Yield the problems of one model with what only several have."""
    rule = "goes with a composition, models: {NAME: …}"
    if spec.distillation is not None:
        yield Problem(path=("distillation",), rule=f"{rule} of networks", at_key=True)
    for index, settings in spec.weightings:
        if settings.sampler is not None:
            path: KeyPath = ("methods", index, "weighted", "sampler")
            yield Problem(path=path, rule=rule, value=settings.sampler)
