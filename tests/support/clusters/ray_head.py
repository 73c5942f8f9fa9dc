"""A Ray head with token authentication on ports and in a folder of its own; it ends by process id."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True, kw_only=True)
class Head:
    """A running cluster of one node."""

    address: str
    client: str
    dashboard: str
    token: Path

    def environment(self, token: str | None = None) -> dict[str, str]:
        """What a program needs to use the cluster, with this token or the right one; nothing else of Ray's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        chosen = {"RAY_AUTH_TOKEN_PATH": str(self.token)} if token is None else {"RAY_AUTH_TOKEN": token}
        return {**kept, **chosen, "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def ray_head(cpus: int = 2) -> Iterator[Head]:
    """Run a head for the length of a block."""
    folder = Path(tempfile.mkdtemp(prefix="cdsj-", dir="/tmp"))  # short: Ray's sockets lie in it
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(4)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        port, client, dashboard, agent = (each.getsockname()[1] for each in sockets)
    made = Head(
        address=f"127.0.0.1:{port}",
        client=f"ray://127.0.0.1:{client}",
        dashboard=f"http://127.0.0.1:{dashboard}",
        token=token,
    )
    command = [
        *(RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"),
        *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
        *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        *(f"--temp-dir={folder}", f"--num-cpus={cpus}", "--disable-usage-stats"),
    ]
    # Started by its full path, as in cluster/machines.yaml: PATH leads to another python, or to none.
    ours = str(Path(sys.executable).parent)
    path = os.pathsep.join(place for place in os.environ["PATH"].split(os.pathsep) if place != ours)
    environment = {**made.environment(), "RAY_AUTH_MODE": "token", "PATH": path}
    # Without it a process that the server for clients forks may abort before it runs: gRPC starts its threads again in
    # the child, whose files are closed under them.
    environment["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    log = folder / "head.log"
    with log.open("wb") as stream:
        head = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        end = time.monotonic() + 120
        # Ray says that it has started before its server for clients listens.
        while b"Ray runtime started" not in log.read_bytes() or not all(
            map(_listens, (port, client, dashboard))
        ):
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield made
    finally:
        family = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        head.terminate()
        for stop in (psutil.Process.terminate, psutil.Process.kill):
            _, alive = psutil.wait_procs(family, timeout=10)
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    stop(process)
        psutil.wait_procs(family, timeout=10)
        shutil.rmtree(folder, ignore_errors=True)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False
