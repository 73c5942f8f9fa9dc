"""One sweep's directory ``STORAGE/NAME/``: the one object that reads and writes its files."""

import io
import json
import secrets
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestrator.errors import StorageError
from orchestrator.results import checkpoints, filesystems, layout, leases
from orchestrator.results.files import Files
from orchestrator.results.retries import Patience
from orchestrator.results.schema import (
    VERSION,
    Names,
    evaluations_schema,
    history_schema,
    trials_schema,
    units_table,
    up_to_date,
    version_of,
)

FINAL = frozenset({"succeeded", "failed", "infeasible"})
"""Statuses of a trial that is not run again; one that was stopped has no row, and goes on."""

_BLOCK = 1000
"""Files whose rows are joined at a time."""


class _Seen:
    """Rows of finished trials that were read, ascending by id: a row is never changed, so none is read twice."""

    def __init__(self) -> None:
        self.lock, self.writing = threading.RLock(), threading.Lock()
        self.table: pa.Table | None = None
        """None before the first look."""
        self.ids: frozenset[str] = frozenset()
        self.stored: frozenset[str] = frozenset()
        """Those that the journal holds."""

    def __reduce__(self) -> tuple[type["_Seen"], tuple[()]]:
        return _Seen, ()

    def keep(self, table: pa.Table) -> None:
        self.table, self.ids = table, frozenset(table["trial_id"].to_pylist())

    def add(self, tables: list[pa.Table]) -> None:
        if tables:
            known = [] if self.table is None else [self.table]
            joined = pa.concat_tables([*known, *tables], promote_options="default")
            self.keep(joined.combine_chunks().sort_by("trial_id"))


class SweepStore:
    """Results, checkpoints and state of one sweep; picklable, cheap to make, holds no open file.

    Reading never fails because of one bad file: it is skipped and named in ``problems``.
    """

    def __init__(self, storage: str, name: str, *, patience: Patience | None = None) -> None:
        """Point at a sweep, which need not exist yet.

        Args:
            storage: Directory or URI that holds sweeps.
            name: Of the sweep; one path component.
            patience: With a storage that is not local; by default what the environment says.

        Raises:
            UsageError: The name is no path component.
            StorageError: The URI cannot be understood.
        """
        self.name = layout.check_name(name, "the name of a sweep")
        self._files = Files(filesystems.join(storage, name), patience=patience)
        self._problems: dict[str, str] = {}
        self._tolerant = False
        self._seen = _Seen()
        self._memory: dict[Any, Any] | None = None
        self._fence: leases.Fence | None = None
        self.lease: int | None = None
        """Number of the driver for which this is written, or None."""

    @property
    def problems(self) -> list[str]:
        """What was wrong with files at their last reading, one line each."""
        return [f"{self.url(path)}: {problem}" for path, problem in sorted(self._problems.items())]

    def tolerant(self, memory: dict[Any, Any] | None = None) -> "SweepStore":
        """The same sweep, for a reader that says what it left out: tables of another schema version are skipped.

        Tables of finished trials go into ``memory``, and are taken from there the next time, unless a driver may have
        forgotten some of the trials since.
        """
        if memory is not None:
            journal = self.journal() or {}
            known = journal.get("lease"), journal.get("forgotten")
            if memory.setdefault("known", known) != known:
                memory.clear()
                memory["known"] = known
        other = SweepStore(self.storage, self.name)
        other._files, other._memory, other._tolerant = self._files, memory, True
        other._seen = self._seen if memory is None else memory.setdefault("rows", self._seen)
        return other

    @property
    def storage(self) -> str:
        """Absolute path or URI of the folder that holds the sweep."""
        return filesystems.split(self.url())[0]

    def url(self, path: str = "") -> str:
        """Absolute path or URI of a file of the sweep."""
        return self._files.url(path)

    # ------------------------------------------------------------------ what the sweep is

    def create(self, spec_yaml: str, plan: dict[str, Any], baseline: dict[str, Any] | None) -> None:
        """Write what defines the sweep.

        Args:
            spec_yaml: The resolved spec.
            plan: The document of ``cdsweep plan``, with the trials and their ids.
            baseline: Statistics of the rewards under the pretrained model, where they are known already.

        Raises:
            StorageError: The place cannot be written.
        """
        self.write_plan(plan)
        if baseline is not None:
            self._write_json(layout.BASELINE, baseline)
        self._files.write(layout.SPEC, spec_yaml.encode())  # last: a sweep exists once its spec does

    def redefine(self, spec_yaml: str, plan: dict[str, Any]) -> None:
        """Write what defines a sweep that has grown; what was said of the thresholds and columns is said again."""
        self.write_plan(plan)
        for path in (layout.PREVIEW, layout.UNITS):
            self._files.remove(path)
        self._files.write(layout.SPEC, spec_yaml.encode())

    def hollow(self) -> bool:
        """Whether nothing was ever found out here: its pretrained model could not be sampled."""
        return not self.has_baseline() and not self._files.names(layout.TRIALS)

    def exists(self) -> bool:
        """Whether the sweep has been created."""
        return self._files.exists(layout.SPEC)

    def spec_yaml(self) -> str:
        """The resolved spec."""
        return self._required(layout.SPEC).decode()

    def plan(self) -> dict[str, Any]:
        """The document of ``cdsweep plan``."""
        return self._read_json(layout.PLAN)

    def baseline(self) -> dict[str, Any]:
        """Statistics of the rewards under the pretrained model."""
        return self._read_json(layout.BASELINE)

    def has_baseline(self) -> bool:
        """Whether the pretrained model has been sampled, or is known exactly."""
        return self._files.exists(layout.BASELINE)

    def write_baseline(self, samples: pa.Table, baseline: dict[str, Any], plan: dict[str, Any]) -> None:
        """Write samples of the pretrained model, their statistics, and the plan with thresholds resolved by them."""
        self._write_table(layout.SAMPLES, samples)
        self.write_plan(plan)
        self._write_json(layout.BASELINE, baseline)  # last: with it the pretrained model counts as sampled

    def write_plan(self, plan: dict[str, Any]) -> None:
        """Write the plan, or write it anew with the trials that a search has chosen."""
        self._files.write(layout.PLAN, _plan_text(plan).encode())

    def write_bounds(self, table: pa.Table) -> None:
        """Write how well the frontier was known after every trial."""
        self._write_table(layout.BOUNDS, table)

    def bounds(self) -> pa.Table | None:
        """How well the frontier was known after every trial, or None without a certified search."""
        return self._read_table(layout.BOUNDS)

    def write_units(self, names: Iterable[Names]) -> None:
        """Write unit and meaning of every column, once; ``names`` are those of the trials."""
        if not self._files.exists(layout.UNITS):
            self._write_table(layout.UNITS, units_table(names))

    def write_preview(self, document: dict[str, Any]) -> None:
        """Write what samples of the pretrained model say of the plan's thresholds."""
        self._write_json(layout.PREVIEW, document)

    def preview(self) -> dict[str, Any] | None:
        """What samples of the pretrained model say of the plan's thresholds, or None."""
        return self._read_json(layout.PREVIEW) if self._files.exists(layout.PREVIEW) else None

    def baseline_samples(self) -> pa.Table | None:
        """One row per sample of the pretrained model, or None where it is known exactly."""
        return self._read_table(layout.SAMPLES)

    # ------------------------------------------------------------------ results

    def write_trial(self, table: pa.Table) -> bool:
        """Write the row of a finished trial, once.

        Returns:
            Whether it was written; False if the trial had already finished, and nothing was changed.

        Raises:
            StorageError: It cannot be written.
        """
        assert table.num_rows == 1, "one file per trial"
        row = table.select(["trial_id", "status"]).to_pylist()[0]
        assert row["status"] in FINAL, f"only a finished trial is written, not {row['status']!r}"
        path = layout.table(layout.TRIALS, row["trial_id"])
        if self._files.exists(path) and self._read_table(path) is not None:
            return False
        self._write_table(path, table)
        return True

    def forget(self, trial_ids: Collection[str]) -> None:
        """Remove the rows and checkpoints of trials, which then count as never begun."""
        with self._seen.lock:
            self.trials()
            self._drop(trial_ids)
        self._write_rows(anew=True)  # first: it would stand for the rows that come in their place
        for trial_id in trial_ids:
            self.drop_checkpoints(trial_id)
            self._files.remove(layout.table(layout.TRIALS, trial_id))

    def write_history(self, trial_id: str, table: pa.Table) -> None:
        """Write the logged steps of a trial, in place of those written before."""
        self._write_table(layout.table(layout.HISTORY, trial_id), table)

    def write_evaluations(self, trial_id: str, table: pa.Table) -> None:
        """Write the evaluation samples of a trial."""
        self._write_table(layout.table(layout.EVALUATIONS, trial_id), table)

    def write_frontier(self, table: pa.Table) -> None:
        """Write what ``cdsweep frontier`` shows."""
        self._write_table(layout.FRONTIER, table)

    def write_figure(self, name: str, data: bytes) -> str:
        """Write a figure such as ``frontier.svg``; returns its path or URI."""
        return self.write_file(f"{layout.FIGURES}/{layout.check_name(name, 'a figure')}", data)

    def write_adapter(self, trial_id: str, files: Mapping[str, bytes]) -> str:
        """Write the files of an adapter; returns its folder, relative to the sweep."""
        folder = layout.adapter(trial_id)
        for name, data in files.items():
            self._files.write(f"{folder}/{layout.check_name(name, 'an adapter file')}", data)
        return folder

    def adapter_url(self, trial_id: str) -> str | None:
        """Where the adapter of a trial lies, if it has one."""
        folder = layout.adapter(trial_id)
        return self.url(folder) if self._files.names(folder) else None

    def image_url(self, trial_id: str) -> str | None:
        """Where the images of a trial lie, if it has any."""
        path = layout.image(trial_id)
        return self.url(path) if self._files.exists(path) else None

    def adapter(self, trial_id: str) -> dict[str, bytes]:
        """Files of the adapter of a trial by name; none if it has none."""
        folder = layout.adapter(trial_id)
        return {name: self._files.read(f"{folder}/{name}") for name in self._files.names(folder)}

    def read_file(self, path: str) -> bytes | None:
        """Any file of the sweep, or None if it is not there."""
        try:
            return self._files.read(path)
        except FileNotFoundError:
            return None

    def write_file(self, path: str, data: bytes) -> str:
        """Write any other file of the sweep, such as the report; returns its path or URI."""
        self._files.write(path, data)
        return self.url(path)

    def finished(self) -> frozenset[str]:
        """Ids of the trials that have a readable row with a final status."""
        table = self.trials()
        rows = zip(table["trial_id"].to_pylist(), table["status"].to_pylist(), strict=True)
        return frozenset(trial_id for trial_id, status in rows if status in FINAL)

    def trial_ids(self) -> frozenset[str]:
        """Ids of the trials that have a row, readable or not; a listing, without reading any."""
        return frozenset(self._ids(layout.TRIALS))

    def trials(self) -> pa.Table:
        """One row per finished trial, by id; those that this object or the journal has not seen are read."""
        with self._seen.lock:
            ids = self.trial_ids()
            if self._seen.table is None and ids and (found := self._read_table(layout.ROWS)) is not None:
                self._seen.keep(found)
                self._seen.stored = self._seen.ids
            if gone := self._seen.ids - ids:
                self._drop(gone)
            new = [layout.table(layout.TRIALS, trial_id) for trial_id in sorted(ids - self._seen.ids)]
            self._seen.add(self._read_tables(new))
            return self.seen()

    def seen(self) -> pa.Table:
        """The rows that this object has read, without a look for others."""
        return trials_schema(Names()).empty_table() if self._seen.table is None else self._seen.table

    def trial(self, trial_id: str) -> dict[str, Any] | None:
        """The row of one trial by column, or None if it has not finished."""
        with self._seen.lock:
            if trial_id not in self._seen.ids:
                self._seen.add(self._read_tables([layout.table(layout.TRIALS, trial_id)]))
            if self._seen.table is None:
                return None
            found = self._seen.table.filter(pc.equal(self._seen.table["trial_id"], trial_id)).to_pylist()
        return found[0] if found else None

    def _drop(self, trial_ids: Collection[str]) -> None:
        if (seen := self._seen.table) is not None:
            gone = pc.is_in(seen["trial_id"], pa.array(sorted(trial_ids), pa.string()))
            self._seen.keep(seen.filter(pc.invert(gone)))

    def history(self, trial_id: str | None = None) -> pa.Table:
        """One row per logged step, of all trials or of one."""
        return self._read_folder(layout.HISTORY, history_schema(Names()), trial_id)

    def evaluations(self, trial_id: str | None = None) -> pa.Table:
        """One row per evaluation sample, of all trials or of one."""
        return self._read_folder(layout.EVALUATIONS, evaluations_schema(Names()), trial_id)

    # ------------------------------------------------------------------ checkpoints

    def save_checkpoint(self, trial_id: str, step: int, files: dict[str, bytes]) -> None:
        """Write a complete checkpoint, then remove older ones but one."""
        checkpoints.save(self._files, trial_id, step, files)

    def load_checkpoint(self, trial_id: str) -> tuple[int, dict[str, bytes]] | None:
        """Step and files of the newest undamaged checkpoint, or None if there is none."""
        return checkpoints.load(self._files, trial_id, self._problems)

    def checkpoint_step(self, trial_id: str) -> int | None:
        """Step of a trial's newest checkpoint by its name, or None if there is none; nothing of it is read."""
        return checkpoints.newest_step(self._files, trial_id)

    def checkpointed(self) -> list[str]:
        """Ids of the trials that have checkpoints."""
        return self._files.folders(layout.CHECKPOINTS)

    def drop_checkpoints(self, trial_id: str) -> None:
        """Remove the checkpoints of a trial."""
        self._files.remove_folder(layout.checkpoints(trial_id))

    # ------------------------------------------------------------------ life of the sweep

    def take_lease(self, say: Callable[[str], None]) -> leases.Lease:
        """Become the driver of the sweep: only it writes, until another has taken its place.

        Args:
            say: Told where that takes a while, because another may drive it.

        Raises:
            UsageError: Another process drives it; says which, and since when.
            StorageError: The storage cannot tell two drivers apart, or cannot be written.
        """

        def beat() -> Any:
            found = self.journal() or {}
            return found.get("lease"), found.get("beat")

        def freed(number: int) -> bool:
            found = self.journal() or {}
            return found.get("lease") == number and found["state"] != leases.DRIVING

        taken = leases.take(self._files, beat, freed=freed, say=say)
        self.hold(taken.number)
        return taken

    def hold(self, number: int) -> None:
        """Write for the driver of this number, and only while it drives the sweep."""
        self.lease, self._fence = number, leases.Fence(self._files, number)
        self._files = self._files.guarded(self._fence)

    def holder(self) -> leases.Lease | None:
        """The last driver, whether it still drives or not; None if there was none."""
        return leases.holder(self._files)

    def write_journal(self, document: dict[str, Any]) -> None:
        """Write how far the sweep is, for those who look at it; and the rows that were seen since the last time."""
        self._write_rows()
        self._write_json(layout.JOURNAL, document)

    def _write_rows(self, *, anew: bool = False) -> None:
        with self._seen.writing:
            with self._seen.lock:
                seen, ids = self._seen.table, self._seen.ids
            if seen is not None and (anew or ids != self._seen.stored):
                self._write_table(layout.ROWS, seen)
                self._seen.stored = ids

    def journal(self) -> dict[str, Any] | None:
        """What its driver last said, or None if no driver ever ran."""
        self._problems.pop(layout.JOURNAL, None)
        try:
            document = json.loads(self._files.read(layout.JOURNAL))
        except FileNotFoundError:
            return None
        except ValueError as error:  # it can be told from the other files, and is written anew
            self._problems[layout.JOURNAL] = f"damaged, skipped ({error})"
            return None
        return document if isinstance(document, dict) else None

    def request_stop(self) -> None:
        """Ask the driver to stop."""
        leases.request_stop(self._files)

    def stop_requested(self) -> bool:
        """Whether somebody asked this driver to stop.

        Raises:
            LeaseLostError: It is not the driver any more.
        """
        assert self._fence is not None, "only a driver is asked"
        return self._fence.stop_requested()

    def tracked_as(self) -> str:
        """What tells this sweep from all others of its name in trackers, which keep runs when a sweep is removed."""
        if not self._files.exists(layout.TRACKED):
            self._write_json(layout.TRACKED, {"sweep_id": secrets.token_hex(4)})
        return str(self._read_json(layout.TRACKED)["sweep_id"])

    # ------------------------------------------------------------------ files

    def _ids(self, folder: str) -> list[str]:
        """Ids of the trials that have a file in a folder, ascending."""
        names = self._files.names(folder)
        return [name.removesuffix(".parquet") for name in names if name.endswith(".parquet")]

    def _read_folder(self, folder: str, empty: pa.Schema, trial_id: str | None) -> pa.Table:
        """All readable tables of a folder, or of one trial, as one; missing columns are null."""
        ids = self._ids(folder) if trial_id is None else [trial_id]
        tables = self._read_tables([layout.table(folder, each) for each in ids])
        return pa.concat_tables(tables or [empty.empty_table()], promote_options="default").combine_chunks()

    def _read_tables(self, paths: list[str]) -> list[pa.Table]:
        """Those of some tables that are there and can be used."""
        tables: list[pa.Table] = []
        # Threads because of object stores, where each file costs a round trip.
        with ThreadPoolExecutor(max_workers=8) as pool:
            for begin in range(0, len(paths), _BLOCK):
                read = pool.map(self._remembered, paths[begin : begin + _BLOCK])
                found = [table for table in read if table is not None]
                if found:  # tables of one row cost a hundred times what is in them
                    tables.append(pa.concat_tables(found, promote_options="default").combine_chunks())
        return tables

    def _remembered(self, path: str) -> pa.Table | None:
        """A table from memory, where it is that of a finished trial; else as it is read."""
        if self._memory is not None and path in self._memory:
            found: pa.Table | None = self._memory[path]
            return found
        table = self._read_table(path)
        trial_id = path.rpartition("/")[2].removesuffix(".parquet")
        if self._memory is not None and trial_id in self._seen.ids and path not in self._problems:
            self._memory[path] = table
        return table

    def _read_table(self, path: str) -> pa.Table | None:
        """A Parquet file, or None, with a line in ``problems``, if it is missing or cannot be used."""
        self._problems.pop(path, None)
        try:
            file = pq.ParquetFile(io.BytesIO(self._files.read(path)))
            version = version_of(file.schema_arrow)
            if version is not None and version != VERSION and self._tolerant:
                self._problems[path] = f"version {version} of the results' schema, not {VERSION}: skipped"
                return None
            if version is not None and version != VERSION:
                # Not skipped: half of a sweep, read as if it were all, would mislead.
                raise StorageError(
                    f"{self.url(path)} has version {version} of the results' schema, and this cdsweep reads "
                    f"version {VERSION}: use the cdsweep that wrote it, or a newer one"
                )
            if version is None:
                self._problems[path] = "not written by cdsweep, skipped"
                return None
            return up_to_date(file.read())
        except FileNotFoundError:
            return None
        except (pa.ArrowException, OSError, ValueError) as error:
            self._problems[path] = f"damaged, skipped ({str(error).splitlines()[0]})"
            return None

    def _write_table(self, path: str, table: pa.Table) -> None:
        if version_of(table.schema) != VERSION:
            raise ValueError(f"a table for {path} must come from results.schema, with its version")
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self._files.write(path, sink.getvalue().to_pybytes())

    def _write_json(self, path: str, document: dict[str, Any]) -> None:
        self._files.write(path, (json.dumps(document, indent=2) + "\n").encode())

    def _read_json(self, path: str) -> dict[str, Any]:
        try:
            document = json.loads(self._required(path))
        except ValueError as error:
            raise StorageError(f"{self.url(path)} is damaged: {error}") from error
        if not isinstance(document, dict):
            raise StorageError(f"{self.url(path)} is damaged: not a JSON object")
        return document

    def _required(self, path: str) -> bytes:
        try:
            return self._files.read(path)
        except FileNotFoundError as error:
            raise StorageError(f"{self.url(path)} is missing: this is no complete sweep") from error


def _plan_text(plan: dict[str, Any]) -> str:
    """Return a plan as JSON with a line per trial: it is written for every trial that a search chooses."""
    parts = []
    for key, value in plan.items():
        text = json.dumps(value)
        if key == "trials" and value:
            text = "[\n    " + ",\n    ".join(json.dumps(trial) for trial in value) + "\n  ]"
        parts.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
