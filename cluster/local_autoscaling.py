"""A Ray cluster on this machine whose nodes are fake: the real autoscaler starts and ends them as work comes and goes.

    python cluster/local_autoscaling.py -- cdsweep run sweeps/mixture_grid.yaml
    python cluster/local_autoscaling.py --figures -- cdsweep run sweeps/nine_trials.yaml
    python cluster/local_autoscaling.py            # until Ctrl-C, for trying things from another terminal

Ports are free ones, the dashboard listens on loopback, everything asks for a token of its own, and all of it ends
with this program.
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

CONFIG = Path(__file__).with_name("local-autoscaling") / "cluster.json"

_START_SECONDS = 120.0
_END_SECONDS = 10.0
_GONE_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class LocalCluster:
    """A running cluster."""

    address: str
    """Of the control service: ``127.0.0.1:PORT``."""
    dashboard: str
    """URL."""
    folder: Path
    """Ray's temporary files and logs; every process of the cluster names it."""
    environment: dict[str, str]
    """What a program needs in its environment to use the cluster."""


@contextlib.contextmanager
def local_autoscaling(config: dict[str, Any]) -> Iterator[LocalCluster]:
    """Run a cluster for the length of a block.

    Args:
        config: As in ``local-autoscaling/cluster.json``: node types, most nodes, minutes until an idle one goes.

    Raises:
        RuntimeError: Ray did not start; with its output.
    """
    # Short: Ray's sockets lie in it, and the name of a socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="cds-", dir="/tmp"))
    try:
        cluster, command, environment = _prepare(config, folder)
        with (folder / "head.log").open("wb") as log:
            head = subprocess.Popen(  # noqa: S603 - our own interpreter's Ray
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            _wait_until_up(head, cluster)
            yield cluster
        finally:
            _end(head, folder)
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove the folder; workers whose node has gone end by themselves, and write their last lines until then."""
    end = time.monotonic() + _END_SECONDS
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=time.monotonic() < end)
        time.sleep(0.1)


def _prepare(config: dict[str, Any], folder: Path) -> tuple[LocalCluster, list[str], dict[str, str]]:
    """Write the configuration and the token; return the cluster to be, its command, and the environment of that."""
    port, dashboard, client, agent = _free_ports(4)
    address = f"127.0.0.1:{port}"
    head_id = secrets.token_hex(28)
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": address,
        "head_node_id": head_id,
        "launch_multiple": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    written = folder / "cluster.json"
    written.write_text(json.dumps({**config, "provider": provider}), encoding="utf-8")
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    resources = dict(config["available_node_types"][config["head_node_type"]]["resources"])
    ray = str(Path(sys.executable).with_name("ray"))
    command = [
        *(ray, "start", "--head", "--block"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", f"--ray-client-server-port={client}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}"),
        *(f"--num-cpus={resources.pop('CPU', 0)}", f"--num-gpus={resources.pop('GPU', 0)}"),
        *(f"--resources={json.dumps(resources)}", f"--autoscaling-config={written}"),
        "--disable-usage-stats",
    ]
    environment = {
        **{
            name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")
        },
        **access,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": head_id,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": head_id,
    }
    cluster = LocalCluster(
        address=address,
        dashboard=f"http://127.0.0.1:{dashboard}",
        folder=folder,
        environment={**access, "RAY_ADDRESS": address},
    )
    return cluster, command, environment


def _free_ports(count: int) -> list[int]:
    """Return ports that are free now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_until_up(head: "subprocess.Popen[bytes]", cluster: LocalCluster) -> None:
    """Wait for Ray's own word, which it prints when the head has joined its cluster."""
    log = cluster.folder / "head.log"
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and head.poll() is None:
        if b"Ray runtime started" in log.read_bytes():
            return
        time.sleep(0.1)
    raise RuntimeError(f"Ray did not start:\n{log.read_text(encoding='utf-8', errors='replace')[-4000:]}")


def _end(head: "subprocess.Popen[bytes]", folder: Path) -> None:
    """End the processes of this cluster and no others: fake nodes outlive the head, and all name its folder."""
    head.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        head.wait(_END_SECONDS)
    for stop in (psutil.Process.terminate, psutil.Process.kill):
        family = _processes(folder)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                stop(process)
        if not psutil.wait_procs(family, timeout=_END_SECONDS)[1]:
            break
    head.wait()


def _processes(folder: Path) -> list[psutil.Process]:
    """Processes whose command names this folder, and their children."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter(["pid", "cmdline"]):
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error):
            if any(
                f"{folder}/" in part or part.endswith(f"={folder}") for part in process.info["cmdline"] or ()
            ):
                for each in (process, *process.children(recursive=True)):
                    found[each.pid] = each
    return list(found.values())


@dataclass
class Meter:
    """Counts the seconds of the nodes that came, from a thread of its own."""

    cluster: LocalCluster
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    """By node: ``start`` until it was first used, ``busy``, and ``idle`` after."""

    def __enter__(self) -> Self:
        """Begin to count."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop."""
        self._over.set()
        self._thread.join(_END_SECONDS)

    def wait_until_gone(self, most: float) -> bool:
        """Wait until all nodes but the head have gone."""
        end = time.monotonic() + most
        while self.alive and time.monotonic() < end:
            time.sleep(0.5)
        return not self.alive

    alive: int = 0
    """Nodes besides the head at the moment."""

    def _count(self) -> None:
        os.environ.update(self.cluster.environment)  # read when Ray is imported
        from ray._raylet import GcsClient  # noqa: PLC0415 - the same
        from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply, NodeStatus  # noqa: PLC0415

        client, last = GcsClient(self.cluster.address), time.monotonic()
        while not self._over.wait(0.5):
            reply = GetClusterStatusReply()
            reply.ParseFromString(client.get_cluster_status())
            now = time.monotonic()
            nodes = [
                node
                for node in reply.cluster_resource_state.node_states
                if node.ray_node_type_name and node.status != NodeStatus.DEAD
            ]
            self.alive = len(nodes)
            for node in nodes:
                mine = self.seconds.setdefault(
                    node.node_id.hex(), dict.fromkeys(("start", "busy", "idle"), 0.0)
                )
                busy = node.available_resources["CPU"] < node.total_resources["CPU"]
                mine["busy" if busy else "idle" if mine["busy"] else "start"] += now - last
            last = now

    def figures(self) -> dict[str, float]:
        """Return node-seconds by kind, their sum, and the share of idle ones beyond start-up."""
        totals = {
            kind: sum(node[kind] for node in self.seconds.values()) for kind in ("start", "busy", "idle")
        }
        whole = sum(totals.values())
        share = totals["idle"] / whole if whole else 0.0
        return {"nodes": len(self.seconds), "node_seconds": whole, **totals, "idle_share": share}


def _measured(command: list[str], cluster: LocalCluster) -> int:
    """Run a command, wait until its nodes have gone, and print what they cost."""
    began = time.monotonic()
    with Meter(cluster) as meter:
        code = subprocess.run(command, env={**os.environ, **cluster.environment}, check=False).returncode  # noqa: S603
        wall = time.monotonic() - began
        gone = meter.wait_until_gone(_GONE_SECONDS)
    print(json.dumps({"wall_seconds": wall, **meter.figures(), "gone": gone}), file=sys.stderr)  # noqa: T201
    return code


def main() -> int:
    """Run a command on such a cluster, or keep the cluster until interrupted; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--config", type=Path, default=CONFIG, help="node types and limits (default: %(default)s)"
    )
    parser.add_argument(
        "--figures", action="store_true", help="say what the nodes cost, when the last one has gone"
    )
    parser.add_argument("command", nargs="*", help="what to run on the cluster, after --")
    arguments = parser.parse_args()
    config = json.loads(arguments.config.read_text(encoding="utf-8"))
    with local_autoscaling(config) as cluster:
        print(f"Ray: {cluster.address}, dashboard {cluster.dashboard}", file=sys.stderr)  # noqa: T201
        if arguments.command and arguments.figures:
            return _measured(arguments.command, cluster)
        if arguments.command:
            environment = {**os.environ, **cluster.environment}
            return subprocess.run(arguments.command, env=environment, check=False).returncode  # noqa: S603
        for name, value in cluster.environment.items():
            print(f"export {name}={value}")  # noqa: T201 - for the other terminal
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
