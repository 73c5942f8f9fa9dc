"""Sweeps that run as Ray jobs: submitting, following, and looking at or stopping one through its job."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.errors import CdsweepError, ClusterError, Interrupted, UsageError
from orchestrator.terminal import AsJson, print_json, reported, say, stdout

if TYPE_CHECKING:
    from orchestrator.execution.jobs import Job, Jobs
    from orchestrator.results.store import SweepStore
    from orchestrator.spec import SweepSpec

JobAddress = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="Ask the cluster there, in place of the storage: auto, HOST:PORT, ray://HOST:PORT, or http://HOST:PORT of "
        "the dashboard.",
        show_default=False,
    ),
]
Detach = Annotated[
    bool, typer.Option("--detach", help="Submit as a job of the cluster at --address, and return.")
]
Resolved = Annotated[
    bool,
    typer.Option("--resolved", hidden=True, help="SPEC was written by cdsweep, on another machine."),
]


def logs(
    sweep: Annotated[
        str,
        typer.Argument(metavar="SWEEP", help="Name of a sweep, or id of a job.", show_default=False),
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="ADDRESS",
            help="Ray cluster: auto, HOST:PORT, ray://HOST:PORT, or http://HOST:PORT of the dashboard. Default: that "
            "of the environment, else the one that runs on this machine.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a detached sweep has printed; its newest job."""
    with reported():
        from orchestrator.execution.jobs import Jobs

        if as_json and follow:
            raise UsageError("--json prints one document: leave out --follow")
        jobs = Jobs(address)
        job = jobs.find(sweep)
        if as_json:
            print_json({**_job_document(job), "logs": jobs.logs(job)})
            return
        if follow:
            job = jobs.follow(job, _write)
            say(f"job {job.submission_id}: {job.status}" + (f" ({job.message})" if job.message else ""))
        else:
            _write(jobs.logs(job))


def reach(address: str | None) -> None:
    """Ask a cluster that the command line names whether it is there and takes our token, before anything else is done.

    Raises:
        CdsweepError: It is no address, or no cluster that can be used.
    """
    if address is None:
        return
    from orchestrator.execution.cluster import access
    from orchestrator.execution.cluster import address as addresses

    chosen = addresses.meant(address)
    if chosen not in (None, "local"):
        access.prepare(local=False)
        addresses.probe(addresses.found(str(chosen)))


def is_remote(address: str | None) -> bool:
    """Whether no driver can start here for a cluster: then the sweep runs as a job, watched or detached."""
    from orchestrator.execution.cluster.address import meant

    return "://" in (meant(address) or "")


def run_as_job(
    spec: "SweepSpec",
    address: str | None,
    *,
    detach: bool,
    preview: bool = True,
    fresh: bool = False,
    as_json: bool = False,
) -> None:
    """Submit a sweep as a job; detached, say how to follow, stop and resume it, else follow it to its end.

    Raises:
        CdsweepError: It cannot be submitted, or was interrupted.
    """
    from orchestrator.execution.jobs import Jobs

    jobs = Jobs(address)
    job = jobs.submit(spec, preview=preview, fresh=fresh)
    if not detach:
        _watch(jobs, job, as_json=as_json)
        return
    at = f"--address {address or jobs.url}"
    document = {
        **_job_document(job),
        "address": jobs.url,
        "follow": f"cdsweep logs {job.sweep} --follow {at}",
        "status": f"cdsweep status {job.sweep} {at}",
        "stop": f"cdsweep stop {job.sweep} {at}",
        "resume": f"cdsweep resume {job.sweep} --storage {job.storage} --detach {at}",
    }
    if as_json:
        print_json(document)
        return
    lines = [f"submitted {job.sweep} as job {job.submission_id}; results go to {document['path']}"]
    lines += [f"{name + ':':8}{document[name]}" for name in ("follow", "status", "stop", "resume")]
    stdout().print("\n".join(lines), soft_wrap=True)


def _watch(jobs: "Jobs", job: "Job", *, as_json: bool) -> None:
    """Follow a job to its end, and end as it did; an interrupt stops it."""
    from orchestrator.report.outcome import read_outcome
    from orchestrator.results.store import SweepStore

    say(f"job {job.submission_id}; Ctrl-C stops it")
    try:
        job = jobs.follow(job, sys.stderr.write if as_json else _write)
    except KeyboardInterrupt:
        say(f"asked job {job.submission_id} to stop; Ctrl-C again leaves it to that")
        job = jobs.stop(job)
        raise Interrupted(
            f"job {job.submission_id}: {job.status}; `cdsweep resume` goes on from there"
        ) from None
    if as_json and job.state == "finished":
        print_json(read_outcome(SweepStore(job.storage, job.sweep)).to_json())
    if job.status != "SUCCEEDED":
        if job.exit_code is None:
            say(f"job {job.submission_id}: {job.status} ({job.message})")
        raise typer.Exit(job.exit_code or (130 if job.status == "STOPPED" else 1))


def status_of_job(sweep: str, address: str) -> dict[str, Any]:
    """Return the document of ``cdsweep status`` by a sweep's job; where no counts can be read, with the reason."""
    from orchestrator.execution.jobs import Jobs
    from orchestrator.report.status import status_document

    job = Jobs(address).find(sweep)
    document: dict[str, Any] = {"sweep": job.sweep, "path": _path(job), "state": job.state, "trials": None}
    store = _store(job)
    if isinstance(store, str):
        document["problem"] = store
    else:
        document |= status_document(store)
        if job.active and document["state"] != "finished":
            document["state"] = job.state  # no heartbeat yet
    return {**document, "job": job.to_json()}


def show_status(document: dict[str, Any]) -> None:
    """Print what ``status_of_job`` returns."""
    from orchestrator.report.terminal.tables import status_table

    job = document["job"]
    if document["trials"] is not None:
        stdout().print(status_table(document))
    else:
        stdout().print(f"{document['sweep']}: {document['state']} ({document['problem']})", soft_wrap=True)
    line = f"job {job['submission_id']}: {job['status']}" + (f", {job['message']}" if job["message"] else "")
    stdout().print(line, soft_wrap=True)


def stop_job(sweep: str, address: str) -> None:
    """Stop a sweep through its storage, if that can be reached, and then its job; it can be resumed.

    Raises:
        UsageError: It is not running.
        ClusterError: It has not ended in time.
    """
    from orchestrator.execution.jobs import Jobs

    jobs = Jobs(address)
    job = jobs.find(sweep)
    if not job.active:
        raise UsageError(f"{job.sweep} is not running: its job {job.submission_id} is {job.status}")
    store = _store(job)
    if not isinstance(store, str):
        store.request_stop()
    say(f"asked {job.sweep} to stop; running trials keep their last checkpoints")
    job = jobs.stop(job)
    if job.active:
        raise ClusterError(f"job {job.submission_id} has not ended yet: {job.status}")
    say(f"job {job.submission_id}: {job.status}; `cdsweep resume` goes on from there")


def _job_document(job: "Job") -> dict[str, Any]:
    return {"sweep": job.sweep, "path": _path(job), "storage": job.storage, "job": job.to_json()}


def _path(job: "Job") -> str:
    from orchestrator.results.files import addresses

    return addresses.join(job.storage, job.sweep)


def _store(job: "Job") -> "SweepStore | str":
    """Return the sweep's files, if they are within reach at once, else what keeps them from being read."""
    from orchestrator.results.files import Patience
    from orchestrator.results.store import SweepStore

    try:
        store = SweepStore(job.storage, job.sweep, patience=Patience(seconds=0.0))
        if store.exists():
            return store
    except CdsweepError as error:
        return f"its storage is out of reach from here: {error}"
    return f"there is no {_path(job)} as seen from here: it is still to be made, or lies on the cluster's machines"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
