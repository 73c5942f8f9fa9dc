"""Rules about the sampler's chain: which steps and timesteps go with which kind of model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.spec.text.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trainers.config import SamplingConfig


def exact_chain_problems(sampling: SamplingConfig) -> Iterator[Problem]:
    """Yield what mixtures do not have."""
    if sampling.spacing is not None:
        rule = "goes with pipelines: the chain of a mixture has levels of its own, and no timesteps"
        yield Problem(path=("sampling", "spacing"), rule=rule, value=sampling.spacing)
    yield from _unguided(sampling, "a mixture has no condition to be guided by")


def pipeline_chain_problems(sampling: SamplingConfig) -> Iterator[Problem]:
    """Yield what a pipeline's chain of second order cannot be."""
    if sampling.order == 1:
        return
    if sampling.rest == 0:
        rule = "must be at least 1 with sampling.order 2: its last step is of first order, and the adapter rests in it"
        yield Problem(path=("sampling", "rest"), rule=rule, value=0)
    if sampling.spacing != "trailing":
        rule = (
            "must be trailing with sampling.order 2: other chains may end with a small step after a large one, into "
            "which no guess is extrapolated"
        )
        yield Problem(path=("sampling", "spacing"), rule=rule, value=sampling.spacing)


def flow_chain_problems(sampling: SamplingConfig) -> Iterator[Problem]:
    """Yield what the chain of a model cannot be that was trained by flow matching."""
    if sampling.rest == 0:
        rule = (
            "must be at least 1 for a model trained by flow matching: its last step has no noise, and rests"
        )
        yield Problem(path=("sampling", "rest"), rule=rule, value=0)
    if sampling.spacing not in {None, "trailing"}:
        rule = "goes with a diffusion's timesteps: the levels of a flow are even, which is trailing"
        yield Problem(path=("sampling", "spacing"), rule=rule, value=sampling.spacing)


def composed_chain_problems(sampling: SamplingConfig) -> Iterator[Problem]:
    """Yield what cannot be composed."""
    if sampling.order == 2:
        rule = "must be 1 for a composition: chains whose steps remember the one before are not composed"
        yield Problem(path=("sampling", "order"), rule=rule, value=2)
    yield from _unguided(sampling, "models of a composition are guided by sampling.guidance")


def _unguided(sampling: SamplingConfig, why: str) -> Iterator[Problem]:
    if sampling.true_guidance is not None:
        rule = f"goes with a model that is told its guidance and takes a negative prompt: {why}"
        yield Problem(path=("sampling", "true_guidance"), rule=rule, value=sampling.true_guidance)
