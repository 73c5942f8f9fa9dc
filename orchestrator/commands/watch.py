"""``cdsweep status --watch``: the live table of a sweep that runs elsewhere, from its heartbeat."""

import time
from typing import Any

from rich.live import Live

from orchestrator.errors import UsageError
from orchestrator.report.status import status_document
from orchestrator.report.terminal.live import ORDERS, Order, live_table
from orchestrator.report.terminal.tables import status_table
from orchestrator.results.leases import HEARTBEAT_SECONDS, Watch
from orchestrator.results.store import SweepStore
from orchestrator.spec import suggestion
from orchestrator.terminal import print_json, stdout

_LIVE = ("running", "waiting")


def watch_sweep(store: SweepStore, sort: str, *, as_json: bool = False) -> None:
    """Show a sweep until it does not run any more.

    On a terminal the table is drawn in place; in a file a line is added when something has changed.

    Raises:
        UsageError: An unknown order.
    """
    if sort not in ORDERS:
        raise UsageError(f"unknown order {sort!r}{suggestion(sort, ORDERS, 'orders')}")
    order: Order = sort
    seen = Watch()
    document = status_document(store, seen)
    console = stdout()
    if console.is_interactive and not as_json:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while document["state"] in _LIVE:
                closing = [f"{document['sweep']}: {document['state']}", *document["closing"]]
                live.update(
                    live_table(document["running"], console=console, order=order, closing=closing),
                    refresh=True,
                )
                time.sleep(HEARTBEAT_SECONDS)
                document = status_document(store, seen)
    else:
        told = ""
        while document["state"] in _LIVE:
            if not as_json and (line := _line(document)) != told:
                told = line
                console.print(line, soft_wrap=True)
            time.sleep(HEARTBEAT_SECONDS)
            document = status_document(store, seen)
    if as_json:
        print_json(document)
    else:
        console.print(status_table(document))


def _line(document: dict[str, Any]) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in document["trials"].items())
    return "; ".join([f"{document['sweep']}: {counts}", *document["closing"]])
