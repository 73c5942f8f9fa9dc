"""Sweeps as Ray jobs: submitted with code and spec, followed and stopped by whoever reaches the dashboard.

    run --detach -> package (code, spec, carried files) -> job on the head: sh python.sh -m orchestrator run spec.yaml
    logs, status, stop -> the job whose metadata name the sweep

Nothing secret goes along: the dashboard shows entry point, environment and metadata to all its users.
"""

import asyncio
import json
import logging
import re
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.errors import ClusterError, UsageError
from orchestrator.execution import package
from orchestrator.execution.cluster import access
from orchestrator.execution.cluster import address as addresses
from orchestrator.execution.trials import paths
from orchestrator.plan import base_config
from orchestrator.results.files.addresses import join, masked, refuse_secrets
from orchestrator.spec import SweepSpec, dump_spec

GRACE_SECONDS = 120
"""A job that is asked to stop has this long to write checkpoints and state, before Ray kills it; Ray's default is 3."""

_STATES = {"PENDING": "planned", "RUNNING": "running", "SUCCEEDED": "finished", "STOPPED": "stopped"}
_ACTIVE = frozenset({"PENDING", "RUNNING"})
_EXITS = {3: "finished", 130: "stopped"}
"""Exit codes of ``cdsweep run``, by which Ray calls a job failed."""
_CHATTY = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)
"""They tell of every request."""
_SWEEP, _STORAGE = "cdsweep_sweep", "cdsweep_storage"


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What is asked of Ray, but for the files."""

    entrypoint: str
    submission_id: str
    metadata: dict[str, str]
    env_vars: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A sweep that was submitted."""

    submission_id: str
    sweep: str
    storage: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    message: str
    started_at: str | None
    """ISO 8601, UTC."""
    exit_code: int | None

    @property
    def active(self) -> bool:
        """Whether it has not ended."""
        return self.status in _ACTIVE

    @property
    def state(self) -> str:
        """The state of the sweep, as far as its job tells."""
        return _EXITS.get(self.exit_code or 0) or _STATES.get(self.status, "interrupted")

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def render(
    spec: SweepSpec,
    carried: Mapping[str, str],
    *,
    preview: bool = True,
    fresh: bool = False,
    now: datetime | None = None,
    nonce: str | None = None,
) -> JobRequest:
    """Return the request for a sweep.

    Args:
        spec: With the storage as the cluster sees it.
        carried: Where in the working directory each path lies that the spec names.
        preview: Look at samples of the pretrained model first.
        fresh: Draw them anew.
        now: In UTC.
        nonce: Makes the id unique.
    """
    stamp = f"{now or datetime.now(UTC):%Y%m%d-%H%M%S}-{nonce or secrets.token_hex(3)}"
    entrypoint = [
        "sh",
        package.PYTHON,
        "-m",
        "orchestrator",
        "run",
        package.SPEC,
        "--resolved",
        "--address",
        "auto",
        "--yes",
    ]
    entrypoint += [] if preview else ["--no-preview"]
    entrypoint += ["--fresh"] if fresh else []
    link = storage_link(join(spec.storage, spec.name))
    return JobRequest(
        entrypoint=shlex.join(entrypoint),
        submission_id=f"cdsweep-{spec.name}-{stamp}",
        metadata={
            "job_name": f"cdsweep {spec.name}",
            _SWEEP: spec.name,
            _STORAGE: masked(spec.storage),
            **({"cdsweep_link": link} if link else {}),
            "cdsweep_version": version("cdsweep"),
        },
        env_vars={
            "PYTHONUNBUFFERED": "1",
            "RAY_JOB_STOP_WAIT_TIME_S": str(GRACE_SECONDS),
            **({paths.CARRIED: json.dumps(dict(carried))} if carried else {}),
        },
    )


def storage_link(location: str) -> str | None:
    """Return what a browser opens for a sweep's directory, where there is such a thing."""
    parts = urlsplit(location)
    if parts.scheme == "s3" and not parts.query:
        return f"https://console.aws.amazon.com/s3/buckets/{parts.netloc}?prefix={parts.path.strip('/')}/"
    if parts.scheme in ("gs", "gcs"):
        return f"https://console.cloud.google.com/storage/browser/{parts.netloc}{parts.path}"
    return None if "://" in location else Path(location).as_uri()


def shared_storage(storage: str, *, here: bool) -> str:
    """Return the storage as the cluster's nodes name it.

    Args:
        storage: As it was written.
        here: The cluster is this machine and no other.

    Raises:
        StorageError: It holds credentials.
        UsageError: It is a place that only this machine knows.
    """
    refuse_secrets(storage)
    if "://" in storage or Path(storage).is_absolute():
        return storage
    if here:
        return str(Path(storage).expanduser().absolute())
    raise UsageError(
        f"the storage {storage!r} is a directory relative to this one, which the cluster's nodes do not have: give one "
        "that they and you reach, --storage s3://BUCKET/PREFIX, gs://…, or the absolute path of a directory that "
        "all nodes mount"
    )


class Jobs:
    """The jobs of a cluster; made once the cluster has answered and taken the token."""

    def __init__(self, address: str | None = None) -> None:
        """Connect.

        Args:
            address: Of the cluster, or None: the environment's, else the cluster that runs on this machine.

        Raises:
            ClusterError: It cannot be reached, or refuses the token.
            UsageError: It is no address of a running cluster.
        """
        chosen = addresses.meant(address, jobs=True) or "auto"
        if chosen == "local":
            raise UsageError(
                "a job needs a cluster that goes on without this command: start one (`ray start --head`)"
            )
        access.prepare(local=False)
        chosen = addresses.found(chosen)
        addresses.probe(chosen)
        self.url = addresses.dashboard_url(chosen)
        if self.url != chosen:
            addresses.probe(self.url)
        from ray.job_submission import JobSubmissionClient

        for module in _CHATTY:
            logging.getLogger(module).setLevel(logging.WARNING)
        with self._errors(), addresses.without_environment():
            self._client = JobSubmissionClient(self.url)

    @property
    def here(self) -> bool:
        """Whether the cluster is this machine and no other."""
        nodes = addresses.nodes(self.url)
        return bool(nodes) and all(node.here for node in nodes)

    def submit(self, spec: SweepSpec, *, preview: bool = True, fresh: bool = False) -> Job:
        """Submit a sweep with all it needs, and return its job.

        Raises:
            UsageError: It runs already, its storage or its files cannot be used by the cluster, or they are too large.
            StorageError: The storage holds credentials.
            ClusterError: The upload failed.
        """
        here = self.here
        spec = spec.model_copy(update={"storage": shared_storage(spec.storage, here=here)})
        for job in self.all(spec.name):
            if job.active and job.storage == masked(spec.storage):
                raise UsageError(f"{spec.name} is running already, as job {job.submission_id}")
        named = paths.local_paths(base_config(spec))
        if here:  # its processes find absolute paths themselves
            named = [path for path in named if not Path(path).is_absolute()]
        package.check_sizes(named)
        carried = package.carried_names(named)
        request = render(spec, carried, preview=preview, fresh=fresh)
        with tempfile.TemporaryDirectory(prefix="cdsweep-") as folder, self._errors():
            made = package.build(Path(folder), dump_spec(spec), carried)
            self._client.submit_job(
                entrypoint=request.entrypoint,
                submission_id=request.submission_id,
                metadata=dict(request.metadata),
                runtime_env={
                    "working_dir": str(made.working_dir),
                    "py_modules": [str(module) for module in made.modules],
                    "env_vars": request.env_vars,
                },
            )
            return self.job(request.submission_id)

    def all(self, sweep: str | None = None) -> list[Job]:
        """Jobs of cdsweep, the newest first; of one sweep, if it is named."""
        with self._errors():
            details = self._client.list_jobs()
        ours = [each for each in details if _SWEEP in (each.metadata or {})]
        ours.sort(key=lambda each: each.start_time or 0, reverse=True)
        jobs = [_job(each) for each in ours]
        return [job for job in jobs if sweep in (None, job.sweep)]

    def find(self, sweep: str) -> Job:
        """Return the newest job of a sweep.

        Args:
            sweep: Its name, the path or URI of its directory, or the id of a job.

        Raises:
            UsageError: There is none; names those that there are.
        """
        jobs = self.all()
        for job in jobs:
            if sweep in (job.sweep, job.submission_id, join(job.storage, job.sweep)):
                return job
        known = ", ".join(dict.fromkeys(job.sweep for job in jobs)) or "none"
        raise UsageError(
            f"no job of a sweep {sweep!r} on the cluster at {self.url}; there are jobs of: {known}"
        )

    def job(self, submission_id: str) -> Job:
        """Return a job as it is now."""
        with self._errors():
            return _job(self._client.get_job_info(submission_id))

    def logs(self, job: Job) -> str:
        """Return what a job has printed so far."""
        with self._errors():
            return str(self._client.get_job_logs(job.submission_id))

    def follow(self, job: Job, write: Callable[[str], object]) -> Job:
        """Pass on what a job prints until it ends, each line once; returns it as it is then."""
        told = 0

        def pass_on(text: str, begin: int) -> int:
            nonlocal told
            end = begin + len(text)
            if end > told:
                write(text[max(0, told - begin) :])
                told = end
            return end

        async def tail() -> None:
            begin = 0  # every tail is of the whole log
            async for lines in self._client.tail_job_logs(job.submission_id):
                begin = pass_on(lines, begin)

        while True:
            with self._errors():
                asyncio.run(tail())
            ended = self.job(job.submission_id)
            if not ended.active:
                pass_on(self.logs(ended), 0)
                return ended
            time.sleep(0.5)  # the tail of a job that has not started ends at once

    def stop(self, job: Job, *, seconds: float = GRACE_SECONDS + 10.0) -> Job:
        """End a job, gently: it has time to write what it needs to go on later; returns it as it is then."""
        with self._errors():
            self._client.stop_job(job.submission_id)
        end = time.monotonic() + seconds
        while (now := self.job(job.submission_id)).active and time.monotonic() < end:
            time.sleep(0.5)
        return now

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import ray

        try:
            yield
        except ray.exceptions.AuthenticationError as error:
            raise access.refused(self.url) from error
        except (OSError, RuntimeError, ValueError) as error:  # those of requests and aiohttp are OSErrors
            text = str(error).strip().split("\n", 1)[0]
            if "status code 413" in text:
                text = f"it takes no package as large as this, at most {package.LIMIT >> 20} MiB"
            raise ClusterError(f"the dashboard at {self.url}: {text[:500]}") from error


def _job(details: Any) -> Job:
    metadata = details.metadata or {}
    started = details.start_time
    return Job(
        submission_id=details.submission_id or details.job_id or "",
        sweep=metadata.get(_SWEEP, ""),
        storage=metadata.get(_STORAGE, ""),
        status=str(getattr(details.status, "value", details.status)),
        message=re.sub(r"\s+", " ", details.message or "").strip(),
        started_at=datetime.fromtimestamp(started / 1000, UTC).isoformat() if started else None,
        exit_code=details.driver_exit_code,
    )
