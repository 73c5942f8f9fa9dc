"""Reads sweeps for the cdsweep page, in a process of its own: Ray's dashboard never waits for a storage.

    python -m orchestrator.report.dashboard.reader

takes one JSON object per line on stdin, ``{"ask": "list", "sweeps": [{name, storage}], "storages": [URI]}`` or
``{"ask": "document", "sweep": {name, storage}, "known": TAG}``. It answers each with one line, ``{"answer": …,
"bytes": n}`` or ``{"error": …, "bytes": 0}``, and n bytes: the document as JSON, unless the asker knows it by its tag.
It ends with its input.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, BinaryIO

from orchestrator.errors import CdsweepError
from orchestrator.report.page.document import report_document
from orchestrator.report.page.page import safe_json
from orchestrator.report.status import status_document
from orchestrator.results.catalog import list_sweeps
from orchestrator.results.leases import Watch
from orchestrator.results.store import SweepStore

if TYPE_CHECKING:
    from orchestrator.report.page.lines import Memory

MOST_SWEEPS = 200
"""Listed; those that were announced last come first."""
_FRESH_SECONDS = 2.0
"""An answer this old is given again: several browsers look at once."""
_REST = 5.0
"""A slow answer is kept for so many times as long as it took: reading is a sixth of the time at most."""
_LISTING_SECONDS = 30.0
"""Between two listings of a storage."""

Sweep = dict[str, str]
"""``name`` and ``storage``."""


def sweep_id(sweep: Sweep) -> str:
    """Return what stands for a sweep in an address: nobody can ask for one that is not in the list."""
    return hashlib.sha256(f"{sweep['storage']}\n{sweep['name']}".encode()).hexdigest()[:16]


class Reader:
    """Answers questions, and keeps answers that are still good."""

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._answers: dict[str, tuple[float, Any]] = {}
        self._memories: dict[str, Memory] = {}
        self._watches: dict[str, Watch] = {}

    def answer(self, question: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Return the answer to a question, and the document that goes with it.

        Raises:
            CdsweepError: The sweep cannot be read.
            ValueError: The question is none.
        """
        match question:
            case {"ask": "list", "sweeps": sweeps, "storages": storages}:
                return self._list(sweeps, storages), b""
            case {"ask": "document", "sweep": {"name": name, "storage": storage}, "known": known}:
                sweep = {"name": name, "storage": storage}
                key = f"document {sweep_id(sweep)}"
                tag, document = self._kept(key, _FRESH_SECONDS, lambda: self._document(sweep))
                return {"tag": tag}, b"" if tag == known else document
        raise ValueError(f"no such question: {question!r}")

    def _list(self, announced: Iterable[Sweep], storages: Iterable[str]) -> dict[str, Any]:
        known = {sweep_id(sweep): sweep for sweep in announced}
        problems = []
        for storage in storages:
            try:
                names = self._kept(
                    f"names {storage}", _LISTING_SECONDS, lambda place=storage: list_sweeps(place)
                )
                found = [{"name": name, "storage": SweepStore(storage, name).storage} for name in names]
                known |= {sweep_id(sweep): sweep for sweep in found if sweep_id(sweep) not in known}
            except CdsweepError as error:
                problems.append(str(error))
        listed = list(known.items())[:MOST_SWEEPS]
        sweeps = [
            self._kept(f"status {key}", _FRESH_SECONDS, lambda key=key, sweep=sweep: self._status(key, sweep))
            for key, sweep in listed
        ]
        running = [sweep for sweep in sweeps if sweep["state"] == "running"]
        return {"sweeps": running + [s for s in sweeps if s["state"] != "running"], "problems": problems}

    def _status(self, key: str, sweep: Sweep) -> dict[str, Any]:
        """Return a line of the list; a sweep that cannot be read stays in it."""
        watch = self._watches.setdefault(key, Watch())
        line: dict[str, Any] = {"id": key, **sweep}
        try:
            found = status_document(SweepStore(sweep["storage"], sweep["name"]), watch)
        except (CdsweepError, KeyError, ValueError) as error:
            return {**line, "state": "unreadable", "problem": str(error)}
        counts = found["trials"]
        ended = counts["succeeded"] + counts["failed"] + counts["infeasible"]
        return {**line, "state": found["state"], "trials": {"planned": counts["planned"], "ended": ended}}

    def _document(self, sweep: Sweep) -> tuple[str, bytes]:
        """Return a document, and a tag that changes when there is something new to draw."""
        memory = self._memories.setdefault(sweep_id(sweep), {})
        document = report_document(SweepStore(sweep["storage"], sweep["name"]), memory=memory)
        text = safe_json(document)
        told = safe_json({key: value for key, value in document.items() if key != "generated_at"})
        return hashlib.sha256(told.encode()).hexdigest()[:32], text.encode()

    def _kept(self, key: str, seconds: float, make: Any) -> Any:
        """Return a kept answer for as long as it is fresh; a slow one is kept for longer."""
        now = time.monotonic()
        found = self._answers.get(key)
        if found is not None and now < found[0]:
            return found[1]
        made = make()
        took = time.monotonic() - now
        self._answers[key] = (time.monotonic() + max(seconds, _REST * took), made)
        return made


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer line by line until the questions end."""
    reader = Reader()
    for line in questions:
        body = b""
        try:
            answer, body = reader.answer(json.loads(line))
            reply = {"answer": answer, "bytes": len(body)}
        except Exception as error:  # noqa: BLE001 - one sweep that cannot be read must not end the page of the others
            reply = {"error": str(error) or type(error).__name__, "bytes": 0}
        answers.write(json.dumps(reply).encode() + b"\n" + body)
        answers.flush()


if __name__ == "__main__":
    # Whatever a library prints must not stand among the answers.
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.nice(5)
    serve(sys.stdin.buffer, pipe)
