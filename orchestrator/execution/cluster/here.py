"""Clusters whose control process runs on this machine, and whose they are."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.errors import ClusterError

_SERVER = "gcs_server"
_ADDRESS_FILE = "ray_current_cluster"
"""In the temporary directory of a cluster; ``ray start`` leaves its address there, and no other way to start does."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """The control process of a cluster."""

    address: str
    """``HOST:PORT``."""
    user: str
    ours: bool
    """Whether it runs under our user."""
    started: bool
    """Whether ``ray start`` made it, and it goes on without whoever did."""
    stray: bool
    """Whether it has outlived the program that it belonged to."""


def servers() -> Iterator[Server]:
    """Yield the control processes that this user can see."""
    for process in psutil.process_iter(["name", "ppid", "uids", "username", "cmdline"]):
        its = process.info
        if its["name"] != _SERVER:
            continue
        flags = dict(part.partition("=")[::2] for part in its["cmdline"] or ())
        address = f"{flags.get('--node-ip-address', '')}:{flags.get('--gcs_server_port', '')}"
        orphan, told = its["ppid"] == 1, _told(flags.get("--session-dir"))
        yield Server(
            address=address,
            user=str(its["username"]),
            ours=its["uids"] is not None and its["uids"].real == os.getuid(),
            started=orphan and told == address,
            stray=orphan and told != address,
        )


def _told(session: str | None) -> str | None:
    """Return the address that ``ray start`` has left beside a session's directory."""
    with suppress(OSError):
        return (Path(session or "").parent / _ADDRESS_FILE).read_text(encoding="utf-8").strip()
    return None


def persistent_cluster() -> str | None:
    """Return the address of the cluster that ``ray start`` of this user runs here; None if there is none.

    A local Ray of another program ends with that program: its control process is that program's child, where ``ray
    start`` leaves an orphan. What a killed program has left behind is an orphan too, and nobody's cluster.
    """
    return next((server.address for server in servers() if server.ours and server.started), None)


def refuse_foreign(address: str) -> None:
    """Raise ClusterError where what was found on this machine is another user's, or was left by a killed program."""
    for server in servers():
        if server.address != address or (server.ours and not server.stray):
            continue
        whose = "has been left by a program that is gone" if server.ours else f"is that of {server.user}"
        raise ClusterError(
            f"the Ray that was found at {address} {whose}: start one (`ray start --head`), or name that one"
        )
