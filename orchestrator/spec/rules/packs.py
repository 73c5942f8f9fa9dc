"""Which trials can share a process, or a network among their workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.spec.text.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.spec.records.models import SweepSpec


def pack_problems(spec: SweepSpec) -> Iterator[Problem]:
    """Yield the problem of a number of trials that cannot share a process."""
    pack = spec.resources.pack
    if pack not in ("auto", 1) and (reason := unpackable(spec)) is not None:
        yield Problem(path=("resources", "pack"), rule=f"must be 1 or auto: {reason}", value=pack)


def shard_problems(spec: SweepSpec) -> Iterator[Problem]:
    """Yield the problem of a network that cannot be split among the workers of a trial."""
    if not spec.resources.shard:
        return
    reason = None
    if spec.models is not None or spec.model is None or spec.model.mixture is not None:
        reason = "only the network of a pipeline that is trained can be split"
    elif spec.resources.least_workers < _FEWEST:
        reason = (
            f"a network is split among the workers of a trial, which has {spec.resources.least_workers} at least "
            "(resources.workers): ask for two or more"
        )
    elif spec.training.compile:
        reason = "training.compile takes the network as a whole"
    elif spec.model.quantise is not None:
        reason = "packed weights are not split (model.quantise)"
    if reason is not None:
        yield Problem(path=("resources", "shard"), rule=f"must be false: {reason}", value=True)


_FEWEST = 2
"""Workers that can have parts."""


def unpackable(spec: SweepSpec) -> str | None:
    """Say why no trials of a spec can share a process; None where they can."""
    training = spec.training
    if spec.models is not None or spec.model is None:
        return "the trials of a composition train nothing that they could share"
    if spec.model.mixture is not None:
        return "a mixture has no network that trials could share"
    if spec.resources.most_workers > 1:
        return "packed trials have one worker each (resources.workers)"
    if spec.model.quantise is not None:
        return "model.quantise is not shared between trials"
    for switch in ("gradient_checkpointing", "compile"):
        if getattr(training, switch):
            return f"training.{switch} asks the network of each trial by itself"
    return None
