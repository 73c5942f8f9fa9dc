"""Rows of finished trials, as far as they were read: none is read twice, unless its trial was trained further."""

import threading
from collections.abc import Collection
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.results import layout
from orchestrator.results.schema import Names, trials_schema
from orchestrator.results.tables import Tables, joined


class Rows:
    """Ascending by id; for any number of threads, and empty again in another process."""

    def __init__(self) -> None:
        """Begin with none."""
        self._lock, self._writing = threading.RLock(), threading.Lock()
        self._table: pa.Table | None = None
        self._stored: frozenset[str] = frozenset()
        """Ids of those that the journal holds."""
        self.ids: frozenset[str] = frozenset()
        """Of those that were read."""

    def __reduce__(self) -> tuple[type["Rows"], tuple[()]]:
        """Leave them behind: they are where they were read."""
        return Rows, ()

    def seen(self) -> pa.Table:
        """Those that were read, without a look for others."""
        return trials_schema(Names()).empty_table() if self._table is None else self._table

    def read(self, tables: Tables) -> pa.Table:
        """All that there are; those that were not seen here or by the driver, which keeps a journal, are read."""
        with self._lock:
            ids = frozenset(tables.ids(layout.TRIALS))
            if self._table is None and ids and (found := tables.read(layout.ROWS)) is not None:
                self.keep(found)
                self._stored = self.ids
            if gone := self.ids - ids:
                self._drop(gone)
            self._add(tables.of_trials(layout.TRIALS, sorted(ids - self.ids)))
            return self.seen()

    def row(self, tables: Tables, trial_id: str) -> dict[str, Any] | None:
        """Return one by column, or None if the trial has not finished."""
        with self._lock:
            if trial_id not in self.ids:
                self._add(tables.of_trials(layout.TRIALS, [trial_id]))
            seen = self.seen()
        found: list[dict[str, Any]] = seen.filter(pc.equal(seen["trial_id"], trial_id)).to_pylist()
        return found[0] if found else None

    def forget(self, tables: Tables, trial_ids: Collection[str]) -> None:
        """Leave some out, also in the journal, where they would stand for those that come in their place."""
        with self._lock:
            self.read(tables)
            self._drop(trial_ids)
        self.write(tables, anew=True)

    def reread(self, tables: Tables, trial_ids: Collection[str]) -> None:
        """Read some again, and have them in the journal in place of what was there."""
        with self._lock:
            self._drop(trial_ids)
            self._add(tables.of_trials(layout.TRIALS, sorted(trial_ids)))
        self.write(tables, anew=True)

    def outdated(self, trial_id: str) -> None:
        """Take note that the row of a trial is another now: it is read again when it is asked for."""
        with self._lock:
            if trial_id in self.ids:
                self._drop([trial_id])

    def write(self, tables: Tables, *, anew: bool = False) -> None:
        """Write them into the journal, if that holds others; ``anew``: in any case."""
        with self._writing:
            with self._lock:
                seen, ids = self._table, self.ids
            if seen is not None and (anew or ids != self._stored):
                tables.write(layout.ROWS, seen)
                self._stored = ids

    def keep(self, table: pa.Table) -> None:
        """Have these, in place of what was seen."""
        self._table, self.ids = table, frozenset(table["trial_id"].to_pylist())

    def _add(self, found: list[pa.Table]) -> None:
        if found:
            known = [] if self._table is None else [self._table]
            self.keep(joined([*known, *found]).sort_by("trial_id"))

    def _drop(self, trial_ids: Collection[str]) -> None:
        seen = self.seen()
        gone = pc.is_in(seen["trial_id"], pa.array(sorted(trial_ids), pa.string()))
        self.keep(seen.filter(pc.invert(gone)))
