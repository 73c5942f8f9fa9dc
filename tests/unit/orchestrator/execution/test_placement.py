"""How many trials and workers fit: never more than the cluster holds, never none."""

from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import PlacementError
from orchestrator.execution.placement import place
from orchestrator.execution.session import Cluster
from orchestrator.spec.models import ResourcesSpec


def cluster(cpus: float = 8, gpus: float = 0, nodes: int = 1) -> Cluster:
    return Cluster(
        address="local",
        cpus=cpus,
        gpus=gpus,
        largest_cpus=cpus / nodes,
        largest_gpus=gpus / nodes,
        dashboard=None,
    )


@pytest.mark.parametrize(
    ("resources", "available", "trials", "concurrent", "workers"),
    [
        (ResourcesSpec(), cluster(8), 100, 8, 8),
        (ResourcesSpec(), cluster(8), 3, 3, 8),
        (ResourcesSpec(workers=2), cluster(7), 100, 3, 7),
        (ResourcesSpec(workers=4), cluster(4), 100, 1, 4),
        (ResourcesSpec(cpus_per_worker=3.0), cluster(8), 100, 2, 2),
        (ResourcesSpec(cpus_per_worker=0.5), cluster(2), 100, 4, 4),
        (ResourcesSpec(concurrent_trials=2), cluster(8), 100, 2, 8),
        (ResourcesSpec(concurrent_trials=20), cluster(8), 100, 8, 8),
        (ResourcesSpec(gpus_per_worker=1.0), cluster(8, gpus=3), 100, 3, 3),
        (ResourcesSpec(workers=2, gpus_per_worker=1.0), cluster(8, gpus=3), 100, 1, 3),
        # Two workers of 0.4 share a GPU, and nobody gets the fifth that is left on each.
        (ResourcesSpec(gpus_per_worker=0.4), cluster(64, gpus=3), 100, 6, 6),
        (ResourcesSpec(gpus_per_worker=2.0), cluster(64, gpus=5), 100, 2, 2),
    ],
)
def test_how_many_fit(
    resources: ResourcesSpec, available: Cluster, trials: int, concurrent: int, workers: int
) -> None:
    placement = place(resources, available, trials)
    assert (placement.concurrent, placement.workers) == (concurrent, workers)
    assert placement.gang == (resources.workers > 1)


@given(
    workers=st.integers(1, 5),
    cpus=st.sampled_from([0.25, 0.5, 1.0, 2.0]),
    total=st.integers(1, 64),
    trials=st.integers(1, 99),
)
def test_what_runs_at_a_time_never_needs_more_than_there_is(
    workers: int, cpus: float, total: int, trials: int
) -> None:
    resources = ResourcesSpec(workers=workers, cpus_per_worker=cpus)
    if workers * cpus > total:
        with pytest.raises(PlacementError):
            place(resources, cluster(total), trials)
        return
    placement = place(resources, cluster(total), trials)
    assert 1 <= placement.concurrent <= trials
    assert placement.concurrent * workers * cpus <= total
    assert placement.workers == floor(total / cpus)
    assert placement.workers >= workers


@pytest.mark.parametrize(
    ("resources", "available", "said"),
    [
        (ResourcesSpec(cpus_per_worker=5.0), cluster(8, nodes=2), "largest node has 4 CPU"),
        (ResourcesSpec(workers=9), cluster(8), "9 CPU in all, and the cluster has 8"),
        (
            ResourcesSpec(gpus_per_worker=1.0),
            cluster(8),
            "largest node has 0 GPU; lower resources.gpus_per_worker",
        ),
    ],
)
def test_what_can_never_be_placed_is_refused_with_the_numbers(
    resources: ResourcesSpec, available: Cluster, said: str
) -> None:
    with pytest.raises(PlacementError, match=said):
        place(resources, available, 1)
