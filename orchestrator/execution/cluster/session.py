"""Connecting to Ray: the running cluster if there is one, else a local one, both quiet."""

import importlib
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from orchestrator.errors import ClusterError, UsageError
from orchestrator.execution.cluster import access
from orchestrator.execution.cluster import address as addresses
from orchestrator.execution.cluster.here import persistent_cluster

# Read when Ray is imported or its processes start, so they are set before either.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # 2 s by default: the largest part of a short report
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a process without GPUs sees none
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupt is ours to handle
    "RAY_get_check_signal_interval_milliseconds": "200",  # and is seen as soon while Ray waits
    "TUNE_MAX_PENDING_TRIALS_PG": "64",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # they write what nobody reads, and one of them imports torch here
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # a sweep's truth is its own files, not the Tuner's
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What Ray offers."""

    address: str
    """``local``, or the address that was connected to."""
    cpus: float
    gpus: float
    largest_cpus: float
    """CPUs of the largest node: a worker lives on one node."""
    largest_gpus: float
    dashboard: str | None
    """URL, or None without a dashboard."""


@contextmanager
def connected(address: str | None = None) -> Iterator[Cluster]:
    """Connect to Ray for the length of a block.

    Args:
        address: ``auto``, ``local``, ``ray://HOST:PORT``, ``HOST:PORT``, or None: the running cluster if there is
            one, else a local Ray.

    Raises:
        ClusterError: The address cannot be reached, or refuses the token.
        UsageError: It is no address that a driver connects to.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    chosen = addresses.meant(address) or persistent_cluster() or "local"
    if chosen.startswith("http"):
        raise UsageError(
            f"{chosen} is a dashboard, where jobs are submitted; this command needs the head: HOST:PORT or ray://HOST:PORT"
        )
    access.prepare(local=chosen == "local")
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    import ray

    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Starting Ray is mostly waiting: the slow imports of what comes next fit in.
    imports = threading.Thread(target=importlib.import_module, args=("ray.tune",), daemon=True)
    imports.start()
    if chosen != "local":
        chosen = addresses.found(chosen)
        _check(chosen)
    try:
        try:
            with _signals_kept():
                context = ray.init(
                    address=chosen,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    include_dashboard=True if chosen == "local" else None,
                    dashboard_host="127.0.0.1",
                )
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
            raise ClusterError(f"cannot connect to Ray at {chosen!r}: {addresses.gist(error)}") from error
        access.tighten()
        imports.join()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        total = ray.cluster_resources()
        url = context.dashboard_url
        yield Cluster(
            address=chosen,
            cpus=float(total.get("CPU", 0.0)),
            gpus=float(total.get("GPU", 0.0)),
            largest_cpus=max((float(n.get("CPU", 0.0)) for n in nodes), default=0.0),
            largest_gpus=max((float(n.get("GPU", 0.0)) for n in nodes), default=0.0),
            dashboard=f"http://{url}" if url else None,
        )
    finally:
        ray.shutdown()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep our handlers of SIGINT and SIGTERM: Ray's end the process, and ours end a sweep."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _check(address: str) -> None:
    """Raise ClusterError unless a cluster answers, takes our token and lets a driver start here."""
    addresses.probe(address)
    if not address.startswith("ray://") and not any(node.here for node in addresses.nodes(address)):
        raise ClusterError(
            f"this machine is not a node of the cluster at {address}, and only there a driver can start: use --detach, "
            "or run the command on the head"
        )
