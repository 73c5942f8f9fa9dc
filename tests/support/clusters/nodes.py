"""A Ray cluster of several nodes on this machine, each of which can be killed like a machine that loses power."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

RAY = str(Path(sys.executable).with_name("ray"))
_START_SECONDS = 90.0
_ATTEMPTS = 3


@dataclass
class Node:
    """One ``ray start``: a raylet, its workers, and on the head the control service."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def family(self) -> list[psutil.Process]:
        """All processes of the node."""
        with contextlib.suppress(psutil.NoSuchProcess):
            whole = psutil.Process(self.process.pid)
            return [whole, *whole.children(recursive=True)]
        return []

    def workers(self) -> set[int]:
        """Ids of the processes on the node."""
        return {process.pid for process in self.family()}

    def kill(self) -> None:
        """Take it away at once, without a word to anybody."""
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.wait(30)


@dataclass
class Nodes:
    """The cluster; a context manager that ends its own processes and no others."""

    cpus: tuple[int, ...] = (1, 1, 1)
    """Of the head and of each other node."""
    gpus: tuple[int, ...] = ()
    """Logical ones; none for the nodes left out."""
    dashboard: bool = False
    killed: bool = True
    """Whether nodes will be: a dead one is then noticed after three seconds, and not after half a minute."""
    nodes: list[Node] = field(default_factory=list)

    def __enter__(self) -> Self:
        """Start the head, then the others; again where somebody else took one of the ports."""
        for attempt in range(_ATTEMPTS):
            try:
                self._up()
                break
            except RuntimeError:
                self.__exit__()
                if attempt + 1 == _ATTEMPTS:
                    raise
            except BaseException:
                self.__exit__()
                raise
        return self

    def _up(self) -> None:
        # Short: Ray's sockets lie in it, and the name of a socket has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="cdn-", dir="/tmp"))
        self.nodes = []
        token = self.folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        port, self._dashboard_port, client = free_ports(3)
        self.address = f"127.0.0.1:{port}"
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ADDRESS": self.address,
            "RAY_raylet_start_wait_time_s": "60",  # a busy machine is no reason to fail
        }
        if self.killed:
            self.environment |= {
                "RAY_health_check_period_ms": "1000",
                "RAY_health_check_failure_threshold": "3",
            }
        self._start(
            f"--head --port={port} --ray-client-server-port={client} --temp-dir={self.folder} "
            f"--dashboard-host=127.0.0.1 --dashboard-port={self._dashboard_port} "
            f"--include-dashboard={self.dashboard}",
            0,
        )
        self._wait(self.nodes[0])
        for index in range(1, len(self.cpus)):
            # One after the other: two that start at once take the same names for their sockets, and one aborts.
            self._wait(self.add(index))

    def add(self, like: int) -> Node:
        """Start another node like one of the first; returns before it has joined."""
        return self._start(f"--address={self.address}", like)

    def _start(self, options: str, like: int) -> Node:
        (agent,) = free_ports(1)
        gpus = self.gpus[like] if like < len(self.gpus) else 0
        log = self.folder / f"node-{len(self.nodes)}-{secrets.token_hex(2)}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [
                    *(RAY, "start", "--block", "--node-ip-address=127.0.0.1", *options.split()),
                    *(f"--num-cpus={self.cpus[like]}", f"--num-gpus={gpus}"),
                    *("--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={agent}"),
                    *("--object-store-memory=80000000", "--disable-usage-stats"),
                ],
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self._environment_of_nodes(),
            )
        self.nodes.append(Node(process, log))
        return self.nodes[-1]

    def _environment_of_nodes(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
        environment = {**inherited, **self.environment, "OMP_NUM_THREADS": "1"}
        del environment["RAY_ADDRESS"]  # `ray start` would join itself
        return environment

    def _wait(self, node: Node) -> None:
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end and node.process.poll() is None:
            if b"Ray runtime started" in node.log.read_bytes():
                return
            time.sleep(0.1)
        raise RuntimeError(f"Ray did not start:\n{node.log.read_text(errors='replace')[-3000:]}")

    def kill(self, node: Node) -> None:
        """Take a node away for good."""
        self.nodes.remove(node)
        node.kill()

    def refill(self) -> None:
        """Start as many nodes as have gone, and wait for them."""
        self.nodes = [node for node in self.nodes if node.process.poll() is None]
        for index in range(len(self.nodes), len(self.cpus)):
            self._wait(self.add(index))

    def __exit__(self, *exception: object) -> None:
        """End all nodes, the head last."""
        for node in reversed(self.nodes):
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Return ports that are free now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
