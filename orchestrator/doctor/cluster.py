"""Ray: whether it answers and takes the token, what it has, and who may read the token."""

import os
import stat
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from orchestrator.doctor.finding import Finding, Patient
from orchestrator.errors import ClusterError, UsageError
from orchestrator.execution.cluster import access
from orchestrator.execution.cluster import address as addresses
from orchestrator.execution.cluster.here import persistent_cluster

_GENERATE = (
    "make one: `ray get-auth-token --generate`, then chmod 600 ~/.ray/auth_token, and give it to every node"
)


def check_token(patient: Patient) -> Iterator[Finding]:
    """Look at where the token comes from, and at who else may read it."""
    del patient
    mode = os.environ.get(access.MODE)
    if mode is not None and mode.lower() != "token":
        yield Finding(
            name="token",
            status="warn",
            found=f"{access.MODE}={mode}: whoever reaches the cluster runs any program on it",
            mend=f"unset {access.MODE}; {_GENERATE}",
        )
        return
    source, file = access.token_source(), access.token_file()
    if source is None:
        found = "none; a local Ray makes its own, `ray start` asks for none"
        yield Finding(name="token", status="warn", found=found, mend=_GENERATE)
    elif file is None:
        yield Finding(name="token", status="ok", found=f"from {source}")
    else:
        yield _of_file(file)


def _of_file(file: Path) -> Finding:
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        empty = not file.read_text(encoding="utf-8").strip()
    except OSError as error:
        mend = f"point {access.TOKEN_PATH} at the token's file, or unset it"
        return Finding(name="token", status="fail", found=f"{file}: {error.strerror}", mend=mend)
    if empty:
        return Finding(name="token", status="fail", found=f"{file} is empty", mend=_GENERATE)
    if mode & access.OTHERS:
        found = f"{file} can be read or changed by others ({mode:04o})"
        return Finding(name="token", status="warn", found=found, mend=f"chmod 600 {file}")
    return Finding(name="token", status="ok", found=f"from {file} ({mode:04o})")


def check_ray(patient: Patient) -> Iterator[Finding]:
    """Ask the cluster; without one, a sweep starts a local Ray."""
    try:
        address = addresses.meant(patient.address, jobs=True) or persistent_cluster()
        if address in (None, "local"):
            yield Finding(
                name="ray cluster",
                status="ok",
                found="none runs here or is named: a sweep starts a local Ray",
            )
            return
        access.prepare(local=False)
        address = addresses.found(str(address))
        addresses.probe(address)
        url = addresses.dashboard_url(address)
        theirs = addresses.get_json(url, "/api/version")["ray_version"]
        nodes = addresses.nodes(url)
    except (ClusterError, UsageError) as error:
        yield Finding(
            name="ray cluster", status="fail", found=str(error), mend="see what it says, then run this again"
        )
        return
    ours = version("ray")
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    found = f"Ray {theirs} at {address}, {len(nodes)} node(s), {cpus:g} CPU, {gpus:g} GPU, dashboard {url}"
    if theirs != ours:
        mend = f"install one Ray everywhere: here it is {ours}"
        yield Finding(name="ray cluster", status="fail", found=found, mend=mend)
        return
    yield Finding(name="ray cluster", status="ok", found=found)
    wanted = patient.spec.resources.gpus_per_worker if patient.spec else 0.0
    largest = max((node.gpus for node in nodes), default=0.0)
    if wanted > largest:
        yield Finding(
            name="gpus of the cluster",
            status="warn",
            found=f"the spec asks for {wanted:g} per worker, the largest node has {largest:g}",
            mend="start nodes with GPUs, or rely on the autoscaler to bring them",
        )
    elif wanted:
        yield Finding(name="gpus of the cluster", status="ok", found=f"{gpus:g}, up to {largest:g} on a node")
