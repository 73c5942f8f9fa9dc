"""How many trials and workers fit: never more than the cluster holds, never none."""

from math import floor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import PlacementError
from orchestrator.execution.cluster.capacity import Capacity, Node, of_report, of_status
from orchestrator.execution.cluster.placement import Room, idle_gpus, place
from orchestrator.spec.records.models import ElasticWorkers, ResourcesSpec
from trainers.config import MixtureConfig, ModelConfig


def cluster(cpus: float = 8, gpus: float = 0, nodes: int = 1) -> Capacity:
    return Capacity(nodes=(Node(cpus=cpus / nodes, gpus=gpus / nodes),) * nodes)


@pytest.mark.parametrize(
    ("resources", "available", "trials", "concurrent", "workers"),
    [
        (ResourcesSpec(), cluster(8), 100, 8, 8),
        (ResourcesSpec(), cluster(8), 3, 3, 8),
        (ResourcesSpec(workers=2), cluster(7), 100, 3, 7),
        (ResourcesSpec(workers=4), cluster(4), 100, 1, 4),
        (ResourcesSpec(workers=ElasticWorkers(min=1, max=4)), cluster(3), 100, 3, 3),
        # A worker lives on one node: half a CPU on each of three is no CPU.
        (ResourcesSpec(), cluster(4.5, nodes=3), 100, 3, 3),
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
    resources: ResourcesSpec, available: Capacity, trials: int, concurrent: int, workers: int
) -> None:
    placement = place(resources, available, trials)
    assert (placement.concurrent, placement.workers) == (concurrent, workers)
    assert placement.gang == (resources.most_workers > 1)


@pytest.mark.parametrize(
    ("pack", "cpus", "trials", "concurrent", "size"),
    [
        (1, 2, 9, 2, 1),
        (3, 2, 9, 6, 3),
        (3, 2, 4, 4, 3),
        ("auto", 8, 8, 8, 1),  # a worker for each: nobody shares
        ("auto", 2, 3, 3, 2),
        ("auto", 2, 99, 8, 4),
    ],
)
def test_packed_trials_share_the_place_of_one(
    pack: Any, cpus: int, trials: int, concurrent: int, size: int
) -> None:
    resources = ResourcesSpec(pack=pack)
    placement = place(resources, cluster(cpus), trials, packable=True)
    assert (placement.concurrent, placement.pack) == (concurrent, size)
    assert place(resources, cluster(cpus), trials).pack == 1, "what cannot be packed is not"
    assert Weather(cluster(cpus)).room(resources, pack=size).limit() == cpus * size


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
        (
            ResourcesSpec(workers=9),
            cluster(8),
            "9 CPU and 0 GPU in all, and the cluster has 8 CPU and 0 GPU on 1 node",
        ),
        (ResourcesSpec(workers=4), cluster(4.5, nodes=3), r"4.5 CPU .* on 3 node\(s\), room for 3 worker"),
        (
            ResourcesSpec(cpus_per_worker=2.0, gpus_per_worker=1.0),
            Capacity(nodes=(Node(cpus=8), Node(cpus=1, gpus=4))),
            "no node has both",
        ),
        (
            ResourcesSpec(gpus_per_worker=1.0),
            cluster(8),
            "largest node has 0 GPU; lower resources.gpus_per_worker",
        ),
    ],
)
def test_what_can_never_be_placed_is_refused_with_the_numbers(
    resources: ResourcesSpec, available: Capacity, said: str
) -> None:
    with pytest.raises(PlacementError, match=said):
        place(resources, available, 1)


# ------------------------------------------------------------------------------------------- while it runs


class Weather:
    """A cluster whose capacity the test changes, and its clock."""

    def __init__(self, capacity: Capacity) -> None:
        """Begin at noon."""
        self.capacity, self.now = capacity, 1000.0
        self.said: list[str] = []

    def room(self, resources: ResourcesSpec, *, searched: bool = False, pack: int = 1) -> Room:
        return Room(
            resources,
            searched=searched,
            pack=pack,
            say=self.said.append,
            look=lambda: self.capacity,
            clock=lambda: self.now,
            patience=300,
        )

    def pass_on(self, room: Room, seconds: float, running: int = 0, waiting: int = 1) -> None:
        for _ in range(round(seconds)):
            self.now += 1
            room.watch(running, waiting)


def test_concurrency_follows_the_cluster() -> None:
    weather = Weather(cluster(3, nodes=3))
    room = weather.room(ResourcesSpec())
    assert room.limit() == 3
    weather.capacity = cluster(2, nodes=2)
    weather.now += 5
    assert room.limit() == 2, "a node has died"
    weather.capacity = cluster(8, nodes=8)
    weather.now += 5
    assert room.limit() == 8, "nodes have joined"
    weather.capacity = Capacity(nodes=())
    weather.now += 5
    assert room.limit() == 1, "one waits for whatever comes"


def test_an_autoscaler_sees_what_is_wanted() -> None:
    growing = Capacity(nodes=(Node(cpus=0),), autoscaler=True)
    assert Weather(growing).room(ResourcesSpec()).limit() >= 32
    assert Weather(growing).room(ResourcesSpec(concurrent_trials=5)).limit() == 5
    assert Weather(growing).room(ResourcesSpec(workers=2)).limit() == 4, "each holds a process that waits"
    chosen = Weather(growing).room(ResourcesSpec(), searched=True)
    assert chosen.limit() == 2, "what a search proposes before it has learned is little"
    assert place(ResourcesSpec(), growing, 9).growing


def test_a_trial_without_room_is_reported_and_at_last_given_up() -> None:
    weather = Weather(cluster(1))
    room = weather.room(ResourcesSpec())
    weather.pass_on(room, 100, running=1)
    assert not weather.said
    weather.capacity = Capacity(nodes=(Node(cpus=0.5),))
    weather.pass_on(room, 50)
    (line,) = weather.said
    assert "a trial needs 1 worker(s) with 1 CPU" in line
    assert "the largest node has 0.5 CPU" in line
    weather.capacity = cluster(1)
    weather.pass_on(room, 10, running=1)
    weather.capacity = Capacity(nodes=())
    weather.pass_on(room, 290)
    assert room.error is None, "a lost machine may come back"
    weather.pass_on(room, 20)
    assert room.error is not None
    assert "the largest node has 0 CPU" in str(room.error)


def test_others_that_use_the_nodes_are_told_of_and_waited_for() -> None:
    weather = Weather(cluster(2))
    room = weather.room(ResourcesSpec())
    weather.pass_on(room, 3600)
    assert room.error is None
    assert len(weather.said) == 60
    assert "but others use them" in weather.said[0]


def test_workers_that_wait_behind_a_running_process_are_told_of() -> None:
    weather = Weather(Capacity(nodes=cluster(2).nodes, pending_groups=1))
    room = weather.room(ResourcesSpec(workers=2))
    for quiet in (False, True):
        assert not weather.said
        for _ in range(60):
            weather.now += 1
            room.watch(running=1, waiting=0, quiet=quiet)
    assert len(weather.said) == 1


def test_an_autoscaler_is_waited_for_unless_it_refuses() -> None:
    weather = Weather(Capacity(nodes=(Node(cpus=0),), autoscaler=True, coming=2, refused=True))
    room = weather.room(ResourcesSpec())
    weather.pass_on(room, 3600)
    assert room.error is None
    assert "2 node(s) are being started" in weather.said[0]
    weather.capacity = Capacity(nodes=(Node(cpus=0),), autoscaler=True, refused=True)
    weather.pass_on(room, 5)
    assert room.error is not None


# ------------------------------------------------------------------------------------------- autoscalers


def test_autoscalers_are_told_from_monitors_that_only_watch() -> None:
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # noqa: PLC0415 - Ray is slow to import

    nodes = (Node(cpus=1),)
    reply = GetClusterStatusReply()
    assert of_status(reply, nodes) is None
    reply.autoscaling_state.autoscaler_state_version = 4
    node = reply.cluster_resource_state.node_states.add()
    assert of_status(reply, nodes) is None
    node.instance_id = "i-0"
    reply.autoscaling_state.pending_instances.add()
    assert of_status(reply, nodes) == Capacity(nodes=nodes, autoscaler=True, coming=1)
    reply.autoscaling_state.infeasible_gang_resource_requests.add()
    found = of_status(reply, nodes)
    assert found is not None
    assert found.refused

    assert of_report(None, nodes) is None
    assert of_report(b'{"autoscaler_report": {"active_nodes": {"node_5f": 1}}}', nodes) is None
    report = b'{"autoscaler_report": {"active_nodes": {"head": 1}, "pending_nodes": [["ip", "gpu", "x"]], '
    report += b'"pending_launches": {"gpu": 2}}}'
    assert of_report(report, nodes) == Capacity(nodes=nodes, autoscaler=True, coming=3)


NETWORK = ModelConfig(pretrained="embedded")
EXACT = ModelConfig(mixture=MixtureConfig(weights=(1.0,), means=((0.0,),), covariances=(((1.0,),),)))


@pytest.mark.parametrize(
    ("model", "wanted", "gpus", "told"),
    [
        (NETWORK, 0.0, 2.0, True),
        (NETWORK, 0.5, 2.0, False),
        (NETWORK, 0.0, 0.0, False),
        (EXACT, 0.0, 2.0, False),
    ],
)
def test_gpus_that_nobody_asked_for_are_told_of(
    model: ModelConfig, wanted: float, gpus: float, told: bool
) -> None:
    said = idle_gpus(model, ResourcesSpec(gpus_per_worker=wanted), gpus)
    assert (said is not None) == told
    assert said is None or said.startswith("resources.gpus_per_worker is 0: networks compute on the CPU")
