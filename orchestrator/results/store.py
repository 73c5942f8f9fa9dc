"""One sweep's directory ``STORAGE/NAME/``: the one object that reads and writes its files."""

import io
import json
import secrets
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.errors import StorageError
from orchestrator.results import checkpoints, filesystems, layout
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

PACKED_FROM = 500
"""Trials from which a sweep's rows are packed into one file as well."""


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

    @property
    def problems(self) -> list[str]:
        """What was wrong with files at their last reading, one line each."""
        return [f"{self.url(path)}: {problem}" for path, problem in sorted(self._problems.items())]

    def tolerant(self) -> "SweepStore":
        """The same sweep, for a reader that says what it left out: tables of another schema version are skipped."""
        other = SweepStore(self.storage, self.name)
        other._tolerant = True
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

    def forget(self, trial_ids: Iterable[str]) -> None:
        """Remove the rows and checkpoints of trials, which then count as never begun."""
        self._files.remove(layout.PACKED_TRIALS)  # first: it would stand for rows that come in their place
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
        table = self._read_folder(layout.TRIALS, trials_schema(Names()), columns=["trial_id", "status"])
        rows = zip(table["trial_id"].to_pylist(), table["status"].to_pylist(), strict=True)
        return frozenset(trial_id for trial_id, status in rows if status in FINAL)

    def trial_ids(self) -> frozenset[str]:
        """Ids of the trials that have a row, readable or not; a listing, without reading any."""
        names = self._files.names(layout.TRIALS)
        return frozenset(name.removesuffix(".parquet") for name in names if name.endswith(".parquet"))

    def trials(self) -> pa.Table:
        """One row per finished trial."""
        return self._read_folder(layout.TRIALS, trials_schema(Names()))

    def pack(self) -> bool:
        """Copy the rows of a large sweep into one file, which is read in their place; whether there are enough.

        Opening a file costs more than reading it. The files stay: what finishes later, or on another machine, is
        read from them.
        """
        names = [name for name in self._files.names(layout.TRIALS) if name.endswith(".parquet")]
        if len(names) < PACKED_FROM:
            return False
        self._write_table(layout.PACKED_TRIALS, self._read_folder(layout.TRIALS, trials_schema(Names())))
        return True

    def trial(self, trial_id: str) -> dict[str, Any] | None:
        """The row of one trial by column, or None if it has not finished."""
        table = self._read_table(layout.table(layout.TRIALS, trial_id))
        return None if table is None or not table.num_rows else table.to_pylist()[0]

    def history(self, trial_id: str | None = None) -> pa.Table:
        """One row per logged step, of all trials or of one."""
        return self._read_folder(layout.HISTORY, history_schema(Names()), trial_id=trial_id)

    def evaluations(self, trial_id: str | None = None) -> pa.Table:
        """One row per evaluation sample, of all trials or of one."""
        return self._read_folder(layout.EVALUATIONS, evaluations_schema(Names()), trial_id=trial_id)

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

    def write_state(self, state: dict[str, Any]) -> None:
        """Write the driver's heartbeat: state, pid, host, updated_at, progress of running trials."""
        self._write_json(layout.STATE, state)

    def state(self) -> dict[str, Any] | None:
        """The driver's last heartbeat, or None if no driver ever ran."""
        return self._read_json(layout.STATE) if self._files.exists(layout.STATE) else None

    def request_stop(self) -> None:
        """Ask the driver to stop."""
        self._write_json(layout.STOP, {"requested_at": datetime.now(UTC).isoformat()})

    def stop_requested(self) -> bool:
        """Whether somebody asked the driver to stop."""
        return self._files.exists(layout.STOP)

    def clear_stop(self) -> None:
        """Forget the request, because the sweep is resumed."""
        self._files.remove(layout.STOP)

    def tracked_as(self) -> str:
        """What tells this sweep from all others of its name in trackers, which keep runs when a sweep is removed."""
        if not self._files.exists(layout.TRACKED):
            self._write_json(layout.TRACKED, {"sweep_id": secrets.token_hex(4)})
        return str(self._read_json(layout.TRACKED)["sweep_id"])

    # ------------------------------------------------------------------ files

    def _read_folder(
        self, folder: str, empty: pa.Schema, *, columns: list[str] | None = None, trial_id: str | None = None
    ) -> pa.Table:
        """All readable tables of a folder, or of one trial, as one; missing columns are null."""
        if trial_id is not None:
            paths = [layout.table(folder, trial_id)]
        else:
            paths = [f"{folder}/{name}" for name in self._files.names(folder) if name.endswith(".parquet")]
        packed: list[pa.Table] = []
        if folder == layout.TRIALS and len(paths) >= PACKED_FROM:
            packed, paths = self._packed(paths, columns)

        def read(path: str) -> pa.Table | None:
            return self._read_table(path, columns)

        # Threads because of object stores, where each file costs a round trip.
        with ThreadPoolExecutor(max_workers=8) as pool:
            tables = packed
            for begin in range(0, len(paths), _BLOCK):
                found = [
                    table for table in pool.map(read, paths[begin : begin + _BLOCK]) if table is not None
                ]
                if found:  # tables of one row cost a hundred times what is in them
                    tables.append(pa.concat_tables(found, promote_options="default").combine_chunks())
        tables = tables or [empty.empty_table().select(columns or empty.names)]
        return pa.concat_tables(tables, promote_options="default").combine_chunks()

    def _packed(self, paths: list[str], columns: list[str] | None) -> tuple[list[pa.Table], list[str]]:
        """Rows of the packed file whose own files are listed, and the paths of those that it has not."""
        wanted = None if columns is None else sorted({*columns, "trial_id"})
        table = self._read_table(layout.PACKED_TRIALS, wanted)
        if table is None:
            return [], paths
        listed = set(paths)
        files = [layout.table(layout.TRIALS, trial_id) for trial_id in table["trial_id"].to_pylist()]
        kept = table.filter(pa.array([file in listed for file in files], pa.bool_()))
        rest = listed.difference(files)
        return [kept if columns is None else kept.select(columns)], sorted(rest)

    def _read_table(self, path: str, columns: list[str] | None = None) -> pa.Table | None:
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
            return up_to_date(file.read(columns=columns))
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
