"""How far a sweep is, from its own files: readable from any machine that reads the storage."""

import socket
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.errors import CdsweepError
from orchestrator.results import filesystems
from orchestrator.results.catalog import list_sweeps
from orchestrator.results.store import SweepStore

UNREADABLE = (CdsweepError, AttributeError, KeyError, TypeError, ValueError)
"""What reading a sweep raises that is damaged, or a newer cdsweep's."""
HEARTBEAT_SECONDS = 3.0
"""Between two writes of a driver's state."""
_STALE = 5 * HEARTBEAT_SECONDS


def status_document(
    store: SweepStore, now: datetime | None = None, trials: pa.Table | None = None
) -> dict[str, Any]:
    """Return the document of ``cdsweep status``.

    Its state is ``finished``, ``running``, ``stopped`` (asked to), ``interrupted`` (its driver died) or ``planned``.
    """
    plan = store.plan()
    trials = store.trials() if trials is None else trials
    statuses = Counter(trials["status"].to_pylist())
    planned, finished = len(plan["trials"]), sum(statuses.values())
    driver = store.state()
    running: list[dict[str, Any]] = []
    # With a search the plan grows: its end is where the driver said so.
    complete = finished >= planned and (
        not plan.get("searched") or (driver is not None and driver["state"] == "ended")
    )
    state = "finished" if complete else "planned"
    if not complete and driver is not None:
        if driver["state"] == "running":
            state = "running" if _drives(driver, now or datetime.now(UTC)) else "interrupted"
        else:
            state = driver["state"] if driver["state"] == "stopped" else "interrupted"
        running = driver["running"] if state == "running" else []
    feasible = pc.sum(trials["feasible"]).as_py() if finished else 0
    return {
        "sweep": store.name,
        "path": store.url(),
        "state": state,
        "trials": {
            "planned": planned,
            "running": len(running),
            **{name: statuses.get(name, 0) for name in ("succeeded", "failed", "infeasible")},
            "stopped": len(driver["running"]) if driver is not None and state == "stopped" else 0,
        },
        "failures": failures(trials),
        "feasible": feasible or 0,
        "running": running,
        "closing": driver.get("closing", []) if driver is not None and state == "running" else [],
        "updated_at": _last(driver, trials),
        "driver": None if driver is None else f"{driver['pid']} on {driver['host']}",
    }


def statuses(storage: str) -> list[dict[str, Any]]:
    """Return the documents of all sweeps in a storage, the one that was last at work first.

    One that cannot be read, because it is damaged or a newer cdsweep's, is ``unreadable`` and has its ``problem``.
    """
    found = []
    for name in list_sweeps(storage):
        try:
            found.append(status_document(SweepStore(storage, name)))
        except UNREADABLE as error:
            line = {"sweep": name, "path": filesystems.join(storage, name), "state": "unreadable"}
            found.append({**line, "problem": str(error), "trials": None, "updated_at": None})
    return sorted(found, key=lambda document: document["updated_at"] or "", reverse=True)


def failures(trials: pa.Table) -> list[dict[str, Any]]:
    """Return ``trial_id, status, error`` of the trials that failed or are infeasible."""
    columns = trials.select(["trial_id", "status", "error"])
    found: list[dict[str, Any]] = columns.filter(
        pc.is_in(columns["status"], pa.array(["failed", "infeasible"]))
    ).to_pylist()
    return found


def _last(driver: dict[str, Any] | None, trials: pa.Table) -> str | None:
    """Return when a sweep was last at work, ISO 8601, UTC; None if it never was."""
    if driver is not None:
        return str(driver["updated_at"])
    ended = pc.max(trials["finished_at"]).as_py()
    return None if ended is None else str(ended.isoformat())


def _drives(driver: dict[str, Any], now: datetime) -> bool:
    """Whether a driver that said it was running still does: by its process here, by its heartbeat elsewhere."""
    beat = datetime.fromisoformat(driver["updated_at"])
    if driver["host"] == socket.gethostname():
        # A driver that waits for its storage lives without a heartbeat; a later process may have its number.
        try:
            process = psutil.Process(driver["pid"])
            return (
                process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= beat.timestamp() + 1.0
            )
        except psutil.Error:
            return False
    return (now - beat).total_seconds() < _STALE
