"""How far a sweep is, from its journal: readable from any machine that reads the storage, in one or two reads."""

import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.errors import CdsweepError
from orchestrator.results import layout
from orchestrator.results.files import Files, addresses
from orchestrator.results.leases import DRIVING, HEARTBEAT_SECONDS, LEASE_SECONDS, Watch, alive
from orchestrator.results.schema import trained
from orchestrator.results.store import SweepStore
from trainers.types import WATCH

UNREADABLE = (CdsweepError, AttributeError, KeyError, TypeError, ValueError)
"""What reading a sweep raises that is damaged, or a newer cdsweep's."""
_LATE_SECONDS = 1.4 * HEARTBEAT_SECONDS
"""A beat that has not changed for so long is one that did not come."""


def status_document(
    store: SweepStore, watch: Watch | None = None, *, outcome: str | None = None
) -> dict[str, Any]:
    """Return the document of ``cdsweep status``.

    Its state is ``finished``, ``running``, ``waiting`` (its driver has not written for a while, and may do so again),
    ``stopped`` (asked to), ``interrupted`` (its driver is gone) or ``planned``.

    Args:
        store: The sweep.
        watch: Of the one who looks again and again: by it a driver on another machine is known to live. At a first
            look the word of the driver is taken.
        outcome: State that its driver is about to leave it in, if that is who asks.
    """
    journal = _journal(store)
    if outcome is not None:
        journal |= {"state": outcome, "running": []}
    return _document(store, journal, watch or Watch())


def statuses(storage: str) -> list[dict[str, Any]]:
    """Return the documents of all sweeps in a storage, the one that was last at work first.

    One read each, so the word of every driver is taken. One that cannot be read, because it is damaged or a newer
    cdsweep's, is ``unreadable`` and has its ``problem``.
    """
    files, found = Files(storage), []
    for name in files.folders():
        try:
            store = SweepStore(storage, name)
            journal = _told(store)
            if journal is not None or store.exists():
                found.append(_document(store, journal or _without_driver(store), Watch()))
        except UNREADABLE as error:
            if files.exists(f"{name}/{layout.SPEC}"):
                line = {"sweep": name, "path": addresses.join(storage, name), "state": "unreadable"}
                found.append({**line, "problem": str(error), "trials": None, "updated_at": None})
    return sorted(found, key=lambda document: document["updated_at"] or "", reverse=True)


def settled_status(store: SweepStore) -> dict[str, Any]:
    """Return the same, after a second look where only that can tell whether a driver on another machine lives."""
    watch, journal = Watch(), _journal(store)
    document = _document(store, journal, watch)
    if document["state"] != "running" or alive(journal["process"]):
        return document
    time.sleep(1.5 * HEARTBEAT_SECONDS)
    return status_document(store, watch)


def _document(store: SweepStore, journal: dict[str, Any], watch: Watch) -> dict[str, Any]:
    state = _driving(journal, watch) if journal["state"] == DRIVING else journal["state"]
    live = state in ("running", "waiting")
    running = journal["running"] if live else []
    return {
        "sweep": store.name,
        "path": store.url(),
        "state": "finished" if state == "ended" else state,
        "trials": {
            "planned": journal["planned"],
            "running": len(running),
            **{name: journal["trials"].get(name, 0) for name in ("succeeded", "failed", "infeasible")},
            "stopped": len(journal["running"]) if state == "stopped" else 0,
        },
        "failures": journal["failures"],
        "feasible": journal["feasible"],
        "running": running,
        "closing": journal.get("closing", []) if live else [],
        "driver": journal.get("owner"),
        "since": journal.get("since"),
        "updated_at": journal.get("updated_at"),
    }


def counts(trials: pa.Table) -> dict[str, Any]:
    """Return what a journal says of finished trials: how many by status, how many are feasible, and which failed."""
    trials = trained(trials)
    feasible = pc.sum(trials["feasible"]).as_py()
    return {
        "trials": dict(Counter(trials["status"].to_pylist())),
        "feasible": feasible or 0,
        "failures": failures(trials),
    }


def failures(trials: pa.Table) -> list[dict[str, Any]]:
    """Return ``trial_id, status, error`` of the trials that failed or are infeasible."""
    columns = trials.select(["trial_id", "status", "error"])
    found: list[dict[str, Any]] = columns.filter(
        pc.is_in(columns["status"], pa.array(["failed", "infeasible"]))
    ).to_pylist()
    return found


def _journal(store: SweepStore) -> dict[str, Any]:
    return _told(store) or _without_driver(store)


def _told(store: SweepStore) -> dict[str, Any] | None:
    """Return the journal, if a driver got as far as to know of what it tells."""
    journal = store.journal()
    return None if journal is None or journal["state"] == "planned" else journal


def _without_driver(store: SweepStore) -> dict[str, Any]:
    """Return the journal of a sweep that no driver has told of, from its files."""
    plan, trials = store.plan(), trained(store.trials())
    planned = len(plan["trials"])
    # With a search the plan grows: its end is where a driver says so.
    ended = trials.num_rows >= planned and not plan.get("searched")
    last = pc.max(trials["finished_at"]).as_py()
    return {
        "state": "ended" if ended else "planned",
        "planned": planned,
        "running": [],
        "updated_at": None if last is None else last.isoformat(),
        **counts(trials),
    }


def _driving(journal: dict[str, Any], watch: Watch) -> str:
    """Return the state of a sweep whose driver has not let go."""
    here = alive(journal["process"])
    quiet = watch.quiet((journal["lease"], journal["beat"]))
    if here:  # one clock: its beat and this look can be compared
        quiet = (datetime.now(UTC) - datetime.fromisoformat(journal["updated_at"])).total_seconds()
        return "waiting" if quiet > LEASE_SECONDS else "running"
    if here is False or quiet >= LEASE_SECONDS:
        return "interrupted"
    return "waiting" if quiet > _LATE_SECONDS else "running"


def watched(trials: pa.Table) -> dict[str, list[str]]:
    """Return by trial what its notes say of what moved beside what it is trained on."""
    found = {}
    for trial_id, notes in zip(trials["trial_id"].to_pylist(), trials["notes"].to_pylist(), strict=True):
        if lines := [note for note in (notes or "").split("; ") if note.startswith(f"{WATCH}: ")]:
            found[trial_id] = lines
    return found
