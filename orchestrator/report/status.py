"""How far a sweep is, from its own files: readable from any machine that reads the storage."""

import socket
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.results.store import SweepStore

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
            **{name: statuses.get(name, 0) for name in ("succeeded", "failed", "stopped")},
        },
        "feasible": feasible or 0,
        "running": running,
        "driver": None if driver is None else f"{driver['pid']} on {driver['host']}",
    }


def _drives(driver: dict[str, Any], now: datetime) -> bool:
    """Whether a driver that said it was running still does: by its process here, by its heartbeat elsewhere."""
    if driver["host"] == socket.gethostname() and not psutil.pid_exists(driver["pid"]):
        return False
    return (now - datetime.fromisoformat(driver["updated_at"])).total_seconds() < _STALE
