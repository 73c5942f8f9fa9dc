"""How many trials fit: computed, so that trial drivers and workers cannot wait for one another for ever."""

import math
from dataclasses import dataclass

from orchestrator.errors import PlacementError
from orchestrator.execution.session import Cluster
from orchestrator.spec.models import ResourcesSpec

DRIVER_RESOURCES = {"node:__internal_head__": 0.001}
"""Of the trial process that starts a Train job: it holds no CPU, or two drivers could starve both their workers."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How the trials of a sweep share the cluster."""

    concurrent: int
    """Trials at a time."""
    workers: int
    """Single workers that fit at a time."""
    gang: bool
    """Whether a trial is a Train job of its own; single-worker trials run in the reused trial process."""


def place(resources: ResourcesSpec, cluster: Cluster, trials: int) -> Placement:
    """Return how many of ``trials`` run at a time.

    Raises:
        PlacementError: Not one trial can ever be placed; the message has the numbers.
    """
    workers, cpus, gpus = resources.workers, resources.cpus_per_worker, resources.gpus_per_worker
    needs = f"{workers} worker(s) with {cpus:g} CPU and {gpus:g} GPU each"
    for what, need, largest, total in (
        ("CPU", cpus, cluster.largest_cpus, cluster.cpus),
        ("GPU", gpus, cluster.largest_gpus, cluster.gpus),
    ):
        if need > largest:
            raise PlacementError(
                f"no node can hold a worker: a trial needs {needs}, and the largest node has {largest:g} {what}; "
                f"lower resources.{what.lower()}s_per_worker"
            )
        if workers * need > total:
            raise PlacementError(
                f"no trial can be placed: a trial needs {needs}, {workers * need:g} {what} in all, and the cluster "
                f"has {total:g}; lower resources.workers or resources.{what.lower()}s_per_worker"
            )
    fits = [cluster.cpus / cpus]
    if gpus:
        # Whole workers per GPU: Ray does not split one fraction over two devices.
        per_device = math.floor(1 / gpus + 1e-9) if gpus < 1 else 1 / gpus
        fits.append(cluster.gpus * per_device)
    single = math.floor(min(fits) + 1e-9)
    most = math.floor(min(fits) / workers + 1e-9)
    wanted = most if resources.concurrent_trials == "auto" else resources.concurrent_trials
    return Placement(concurrent=max(1, min(most, wanted, trials)), workers=max(1, single), gang=workers > 1)
