"""What the cluster has at the moment, and whether something adds nodes to it."""

import contextlib
import json
import math
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.spec import ResourcesSpec

_READONLY = "node_"
"""With this begin the types that Ray's monitor invents for nodes where it has no autoscaler to run."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One living node."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The cluster, as far as trials are concerned."""

    nodes: tuple[Node, ...]
    autoscaler: bool = False
    """Whether nodes come when trials wait."""
    coming: int = 0
    """Nodes that are being started."""
    pending_groups: int = 0
    """Groups of workers that wait for room, those of others too."""
    refused: bool = False
    """Whether the autoscaler says that it can never meet what is waited for."""

    @property
    def largest(self) -> Node:
        """CPUs and GPUs of the nodes that have the most of each."""
        return Node(
            cpus=max((node.cpus for node in self.nodes), default=0.0),
            gpus=max((node.gpus for node in self.nodes), default=0.0),
        )

    def workers(self, resources: ResourcesSpec) -> int:
        """Return how many single workers fit on the living nodes: a worker does not span two."""
        return sum(_on_node(node, resources) for node in self.nodes)


def _on_node(node: Node, resources: ResourcesSpec) -> int:
    fits = [node.cpus / resources.cpus_per_worker]
    if gpus := resources.gpus_per_worker:
        # Whole workers per GPU: Ray does not split one fraction over two devices.
        per_device = math.floor(1 / gpus + 1e-9) if gpus < 1 else 1 / gpus
        fits.append(node.gpus * per_device)
    return math.floor(min(fits) + 1e-9)


def look() -> Capacity:
    """Return the capacity of the Ray cluster that this process is connected to."""
    import ray

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = tuple(Node(cpus=float(its.get("CPU", 0.0)), gpus=float(its.get("GPU", 0.0))) for its in found)
    capacity = Capacity(nodes=nodes)
    # Half private, and absent through Ray's client: then nothing is known.
    with contextlib.suppress(Exception):
        capacity = _second_generation(nodes) or _first_generation(nodes) or capacity
        groups = ray.util.placement_group_table().values()
        return replace(capacity, pending_groups=sum(group["state"] == "PENDING" for group in groups))
    return capacity


def _second_generation(nodes: tuple[Node, ...]) -> Capacity | None:
    """Return what autoscaler v2 says; None if there is none."""
    import ray
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    reply = GetClusterStatusReply()
    reply.ParseFromString(ray._private.worker.global_worker.gcs_client.get_cluster_status())  # noqa: SLF001 - no other way
    return of_status(reply, nodes)


def of_status(reply: Any, nodes: tuple[Node, ...]) -> Capacity | None:
    """Read autoscaler v2's status: nodes have the ids of a provider's instances only where a provider gives them."""
    state = reply.autoscaling_state
    provided = any(node.instance_id for node in reply.cluster_resource_state.node_states)
    if state.autoscaler_state_version == 0 or not provided:
        return None
    return Capacity(
        nodes=nodes,
        autoscaler=True,
        coming=len(state.pending_instances) + len(state.pending_instance_requests),
        refused=bool(state.infeasible_gang_resource_requests or state.infeasible_resource_requests),
    )


def _first_generation(nodes: tuple[Node, ...]) -> Capacity | None:
    """Return what autoscaler v1 says; None if there is none."""
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    return of_report(_internal_kv_get(DEBUG_AUTOSCALING_STATUS), nodes)


def of_report(written: bytes | None, nodes: tuple[Node, ...]) -> Capacity | None:
    """Read autoscaler v1's report, JSON: the types of its nodes have names where there is a provider."""
    report = (json.loads(written) if written else {}).get("autoscaler_report") or {}
    if not any(not str(kind).startswith(_READONLY) for kind in report.get("active_nodes") or {}):
        return None
    coming = len(report.get("pending_nodes") or ()) + sum((report.get("pending_launches") or {}).values())
    return Capacity(nodes=nodes, autoscaler=True, coming=coming)
