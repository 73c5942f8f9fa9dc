"""One quick question to a cluster before anything waits for it: does it answer, and does it take our token?

Ray itself retries for 50 seconds in silence, whatever is wrong.
"""

import http.client
import json
import logging
import os
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil

from orchestrator.errors import ClusterError, UsageError
from orchestrator.execution.cluster import access
from orchestrator.execution.cluster.here import persistent_cluster, refuse_foreign

T = TypeVar("T")

_SECONDS = 3.0
FORMS = "auto, local, HOST:PORT, ray://HOST:PORT, or http://HOST:PORT of the dashboard"
_API_SERVER = "RAY_API_SERVER_ADDRESS"
_SOME_PORTS = "6379 by default; ray:// 10001, http:// 8265"


@dataclass(frozen=True, kw_only=True)
class Node:
    """A living node of a cluster."""

    address: str
    """IP address, as the cluster sees it."""
    hostname: str
    cpus: float
    gpus: float

    @property
    def here(self) -> bool:
        """Whether it is this machine."""
        return self.hostname == socket.gethostname() or self.address in _own_addresses()


def meant(address: str | None, *, jobs: bool = False) -> str | None:
    """Return the address that a user means, the environment read as Ray reads it; None if nobody names one.

    Args:
        address: Of the command line; it goes before the environment.
        jobs: It is for jobs, which have a variable of their own.

    Raises:
        UsageError: It has no form of an address.
    """
    chosen = address or None
    if chosen in (None, "auto"):
        named = (os.environ.get(_API_SERVER) if jobs else None) or os.environ.get("RAY_ADDRESS")
        chosen = named or chosen
    if chosen in (None, "auto", "local"):
        return chosen
    scheme, separator, rest = str(chosen).rpartition("://")
    try:
        parts = urllib.parse.urlsplit(f"//{rest}")
        right = bool(parts.hostname) and (parts.port is not None or scheme in ("http", "https"))
    except ValueError:  # no port number
        right = False
    if not right or (separator and scheme not in ("ray", "http", "https")):
        raise UsageError(f"--address takes {FORMS}; got {_shown(str(chosen))!r}")
    if parts.username is not None:
        raise UsageError("--address holds credentials: leave them out, and give the token as Ray takes it")
    return chosen


def found(address: str) -> str:
    """Return ``HOST:PORT`` in place of ``auto``, and any other address as it is.

    Raises:
        ClusterError: No cluster runs here, several do, or it is not ours.
    """
    if address != "auto":
        return address
    from ray._private import services

    try:
        chosen = persistent_cluster() or str(services.canonicalize_bootstrap_address_or_die("auto"))
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(
            f"no Ray runs on this machine that --address auto could find: start one (`ray start --head`), or name one: "
            f"{FORMS}"
        ) from error
    refuse_foreign(chosen)
    return chosen


def probe(address: str) -> None:
    """Ask a cluster whether it is there and takes our token; at most a few seconds.

    Args:
        address: ``HOST:PORT``, ``ray://HOST:PORT`` or ``http://HOST:PORT``.

    Raises:
        ClusterError: It does not answer, is something else, or refuses the token; says which, and what to do.
    """
    _connect(address)
    if address.startswith("http"):
        if "ray_version" not in get_json(address, "/api/version"):
            raise _something_else(address)
    elif address.startswith("ray://"):
        from ray.core.generated import ray_client_pb2, ray_client_pb2_grpc

        ping = ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)
        _called(address, ray_client_pb2_grpc.RayletDriverStub, "ClusterInfo", ping)
    else:
        nodes(address)


def nodes(address: str) -> list[Node]:
    """Return the living nodes of a cluster.

    Args:
        address: ``HOST:PORT`` or ``http://HOST:PORT``.

    Raises:
        ClusterError: As for ``probe``.
    """
    if address.startswith("http"):
        answer = get_json(address, "/nodes?view=summary")
        raylets = [node.get("raylet", {}) for node in answer.get("data", {}).get("summary", ())]
        return [
            _node(
                raylet.get("nodeManagerAddress", ""),
                raylet.get("nodeManagerHostname", ""),
                raylet.get("resourcesTotal", {}),
            )
            for raylet in raylets
            if raylet.get("state") == "ALIVE"
        ]
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    request = gcs_service_pb2.GetAllNodeInfoRequest()
    answer = _called(address, gcs_service_pb2_grpc.NodeInfoGcsServiceStub, "GetAllNodeInfo", request)
    return [
        _node(each.node_manager_address, each.node_manager_hostname, each.resources_total)
        for each in answer.node_info_list
        if each.state == 0  # ALIVE
    ]


def _node(address: str, hostname: str, resources: Mapping[str, float]) -> Node:
    cpus, gpus = (float(resources.get(name, 0.0)) for name in ("CPU", "GPU"))
    return Node(address=address, hostname=hostname, cpus=cpus, gpus=gpus)


def dashboard_url(address: str) -> str:
    """Return the URL of the dashboard of a cluster that answers, where jobs are submitted.

    Raises:
        ClusterError: It has none, or one that this machine cannot reach.
    """
    if address.startswith("http"):
        return address.rstrip("/")
    if address.startswith("ray://"):
        url = _url_for_clients(address)
        home = _host(address) in ("localhost", "127.0.0.1", "::1")
    else:
        from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

        request = gcs_service_pb2.InternalKVGetRequest(key=b"dashboard", namespace=b"dashboard")
        answer = _called(address, gcs_service_pb2_grpc.InternalKVGcsServiceStub, "InternalKVGet", request)
        url = f"http://{answer.value.decode()}"
        home = any(node.here for node in nodes(address))
    if url == "http://":
        raise ClusterError(
            f"Ray at {address} has no dashboard, and jobs are submitted to it: start it with one"
        )
    if not home and _host(url) in ("localhost", "127.0.0.1", "::1"):
        raise ClusterError(
            f"the dashboard of Ray at {address} listens on its own loopback ({url}): open an SSH tunnel to it "
            "(`ray dashboard CLUSTER.yaml`, or `ssh -L 8265:127.0.0.1:8265 HEAD`) and give --address http://127.0.0.1:8265"
        )
    return url


def _url_for_clients(address: str) -> str:
    """Return the URL of the dashboard as Ray's server for clients knows it, from a process that it forks for us.

    Now and then that process aborts before it runs, and the next one does not: gRPC starts its threads again in the
    child, and ``subprocess`` closes their files (``GRPC_ENABLE_FORK_SUPPORT=0`` in the head's environment prevents it).
    """
    import ray
    from ray.dashboard.utils import get_address_for_submission_client

    logging.getLogger("ray.client_builder").setLevel(logging.WARNING)  # it tells of its own arguments
    for last in (False, False, True):
        try:
            with without_environment():
                return str(get_address_for_submission_client(address))
        except (
            OSError,
            RuntimeError,
            ValueError,
            ray.exceptions.RayError,
        ) as error:  # ConnectionError is an OSError
            if last or "Starting Ray client server failed" not in str(error):
                raise ClusterError(
                    f"Ray's server for clients at {address} took no client ({gist(error)}): try again, or give "
                    "--address http://HOST:8265, the dashboard's, which needs no such server"
                ) from error
    raise AssertionError("the last attempt returns or raises")


def gist(error: BaseException) -> str:
    """The line of an error that says what is wrong: the first, or the last one of a traceback inside it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if any(line.startswith("Traceback (") for line in lines) else lines[0]


def get_json(url: str, path: str) -> dict[str, Any]:
    """Return the document that a dashboard answers with.

    Raises:
        ClusterError: As for ``probe``.
    """
    base = url.rstrip("/")
    request = urllib.request.Request(base + path, headers=access.headers())  # noqa: S310 - http or https

    def ask() -> bytes:
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:  # noqa: S310 - the same
            content: bytes = response.read()
            return content

    try:
        answer = json.loads(_within(ask))
    except urllib.error.HTTPError as error:
        raise access.refused(base) if error.code in (401, 403) else _something_else(base) from error
    except (OSError, TimeoutError) as error:
        raise _unreachable(base, getattr(error, "reason", error)) from error
    except (ValueError, http.client.HTTPException) as error:
        raise _something_else(base) from error
    if not isinstance(answer, dict):
        raise _something_else(base)
    return answer


@contextmanager
def without_environment() -> Iterator[None]:
    """For the length of a block Ray's variables do not stand before the address that it is given."""
    kept = {name: os.environ.pop(name) for name in (_API_SERVER, "RAY_ADDRESS") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _connect(address: str) -> None:
    """Raise ClusterError where nobody listens; known before Ray is imported, which takes longer than the question."""
    parts = urllib.parse.urlsplit(address if "://" in address else f"//{address}")
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return  # only the proxy reaches it
    try:
        _within(lambda: socket.create_connection((host, port), timeout=_SECONDS).close())
    except OSError as error:  # a TimeoutError is one
        raise _unreachable(address, error.strerror or error) from error


def _called(address: str, stub: Any, method: str, request: Any) -> Any:
    """Return the answer of a service of Ray."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel

    access.headers()  # says what is wrong with the token, where the channel below would leave it out
    with init_grpc_channel(
        address.removeprefix("ray://")
    ) as channel:  # with Ray's TLS and token, where they are on
        try:
            return getattr(stub(channel), method)(
                request, timeout=_SECONDS, metadata=[("client_id", "cdsweep")]
            )
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise access.refused(address) from error
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise _unreachable(address, f"no answer within {_SECONDS:g} s") from error
            details = str(error.details())
            if error.code() != grpc.StatusCode.UNAVAILABLE or "HTTP/2" in details or "http1" in details:
                raise _something_else(address) from error
            raise _unreachable(address, details.rpartition(": ")[2]) from error


def _within(call: Callable[[], T]) -> T:
    """Return what a call returns, within the time: looking up a name has no limit of its own."""
    result: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            result.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_SECONDS + 0.5)
    if raised:
        raise raised[0]
    if thread.is_alive():
        raise TimeoutError(f"no answer within {_SECONDS:g} s")
    return result[0]


def _unreachable(address: str, reason: object) -> ClusterError:
    text = str(reason).strip().split("\n", 1)[0]
    return ClusterError(
        f"cannot reach Ray at {address} ({text}): is the cluster up, and is this the port of its head ({_SOME_PORTS})?"
    )


def _something_else(address: str) -> ClusterError:
    return ClusterError(f"what answers at {address} is not Ray, or another port of it ({_SOME_PORTS})")


def _host(address: str) -> str:
    return urllib.parse.urlsplit(address if "://" in address else f"//{address}").hostname or ""


def _shown(address: str) -> str:
    """An address without what may be a secret in it."""
    return address.rpartition("@")[2]


def _own_addresses() -> set[str]:
    return {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
