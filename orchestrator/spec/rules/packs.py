"""Which trials can share a process: of one worker each, on one pipeline, whose network is asked by nothing else."""

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


def unpackable(spec: SweepSpec) -> str | None:
    """Say why no trials of a spec can share a process; None where they can."""
    training = spec.training
    if spec.models is not None or spec.model is None:
        return "the trials of a composition train nothing that they could share"
    if spec.model.mixture is not None:
        return "a mixture has no network that trials could share"
    if spec.resources.most_workers > 1:
        return "packed trials have one worker each (resources.workers)"
    for switch in ("gradient_checkpointing", "compile"):
        if getattr(training, switch):
            return f"training.{switch} asks the network of each trial by itself"
    return None
