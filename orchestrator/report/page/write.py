"""Write ``report.html``: once, or again and again while the sweep runs."""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from orchestrator.report.figures.baselines import baselines_figure
from orchestrator.report.figures.rewards import rewards_figure
from orchestrator.report.page.document import report_document
from orchestrator.report.page.lines import Memory
from orchestrator.report.page.page import report_page
from orchestrator.report.sweep import pretrained_rewards, read_summary, write_frontier
from orchestrator.results import layout
from orchestrator.results.store import SweepStore

REWRITE_SECONDS = 20.0
"""Between two reports of a running sweep, at least."""
_SHARE = 10.0
"""A report that took long is not written again for so many times as long."""
_EXIT_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class WrittenReport:
    """What was written."""

    path: str
    """Path or URI of ``report.html``."""
    size: int
    """Bytes."""
    document: dict[str, Any]


def write_report(
    store: SweepStore, memory: Memory | None = None, *, outcome: str | None = None
) -> WrittenReport:
    """Write the report of a sweep in one step; its driver, which still holds it, says in which state it leaves it.

    Raises:
        SpecError: Spec or plan cannot be read.
        StorageError: The storage cannot be read or written.
    """
    document = report_document(store, memory=memory, outcome=outcome)
    page = report_page(document)
    return WrittenReport(path=store.write_file(layout.REPORT, page), size=len(page), document=document)


def write_figures(store: SweepStore) -> list[str]:
    """Write the figures for print, SVG and PNG; returns paths or URIs. What the page draws, its reader saves from it.

    Raises:
        StorageError: The storage cannot be read or written.
    """
    if not store.has_baseline():
        return []
    summary = read_summary(store.tolerant())
    pretrained = pretrained_rewards(store, summary.baseline)
    drawn = rewards_figure(summary, pretrained) | baselines_figure(summary)
    return [
        *write_frontier(store, summary).values(),
        *(store.write_figure(name, data) for name, data in drawn.items()),
    ]


class LiveReport:
    """Keeps ``report.html`` up to date from a thread of its own; whatever goes wrong there, the sweep goes on."""

    def __init__(
        self, store: SweepStore, say: Callable[[str], None], seconds: float = REWRITE_SECONDS
    ) -> None:
        """Write for ``store``, at most every so many seconds; ``say`` is told when it cannot be."""
        self._store, self._say, self._seconds = store, say, seconds
        self._changed, self._over = threading.Event(), threading.Event()
        self._memory: Memory = {}
        self._thread = threading.Thread(target=self._run, name="report", daemon=True)
        self.problem: str | None = None
        """Why the last report could not be written, or None."""

    def __enter__(self) -> Self:
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop; the last report is the caller's."""
        self._over.set()
        self._changed.set()
        if (
            exception[0] is None
        ):  # else somebody waits for the end, and a file that is half made is never seen
            self._thread.join(_EXIT_SECONDS)

    def changed(self) -> None:
        """Take note that there is something new; returns at once."""
        self._changed.set()

    def _run(self) -> None:
        with suppress(OSError, AttributeError):  # on Linux a thread has a priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while True:
            self._changed.wait()
            if self._over.is_set():
                return
            self._changed.clear()
            began = time.monotonic()
            try:
                write_report(self._store, self._memory)
                problem = None
            except Exception as error:  # noqa: BLE001 - a report is never worth a sweep
                problem = f"{type(error).__name__}: {error}"
            if problem is not None and problem != self.problem:
                self._say(f"warning: the live report cannot be written, the sweep goes on: {problem}")
            elif problem is None and self.problem is not None:
                self._say("the live report is written again")
            self.problem = problem
            took = time.monotonic() - began
            if self._over.wait(max(self._seconds, _SHARE * took)):
                return
