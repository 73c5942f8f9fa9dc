"""Where what a pipeline needs now and then can lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.spec.text.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.spec.records.models import SweepSpec


def offload_problems(spec: SweepSpec) -> Iterator[Problem]:
    """Yield the problem of an autoencoder that has nowhere else to lie."""
    if not spec.training.offload:
        return
    reason = None
    if spec.models is not None or spec.model is None or spec.model.mixture is not None:
        reason = "only the autoencoder of a pipeline that is trained leaves the GPU"
    elif not spec.resources.gpus_per_worker:
        reason = "without a GPU (resources.gpus_per_worker) main memory is all there is"
    if reason is not None:
        yield Problem(path=("training", "offload"), rule=f"must be false: {reason}", value=True)
