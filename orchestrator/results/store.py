"""One sweep's directory ``STORAGE/NAME/``: the one object that reads and writes its files."""

import json
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import pyarrow as pa

from orchestrator.errors import StorageError
from orchestrator.results import checkpoints, layout, leases
from orchestrator.results.files import Files, Patience, addresses
from orchestrator.results.rows import Rows
from orchestrator.results.schema import (
    Names,
    answers_schema,
    beside_round,
    evaluations_schema,
    history_schema,
    units_table,
)
from orchestrator.results.tables import Tables, joined

FINAL = frozenset({"succeeded", "failed", "infeasible"})
"""Statuses of a trial that is not run again; one that was stopped has no row, and goes on."""


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
        self._tables = Tables(Files(addresses.join(storage, name), patience=patience))
        self._rows = Rows()
        self.lease: int | None = None
        """Number of the driver for which this is written, or None."""

    @property
    def _files(self) -> Files:
        return self._tables.files

    @property
    def problems(self) -> list[str]:
        """What was wrong with files at their last reading, one line each."""
        return [f"{self.url(path)}: {problem}" for path, problem in sorted(self._tables.problems.items())]

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
        other._tables = Tables(self._files, tolerant=True, memory=memory)
        other._rows = self._rows if memory is None else memory.setdefault("rows", self._rows)
        return other

    @property
    def storage(self) -> str:
        """Absolute path or URI of the folder that holds the sweep."""
        return addresses.split(self.url())[0]

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
        """Write what defines a sweep anew; where its trials are others, what was said of them all is said again."""
        text = _plan_text(plan)
        before, now = self.plan(), json.loads(text)
        if any(before.get(key) != now.get(key) for key in ("base", "trials", "searches")):
            for path in (layout.PREVIEW, layout.UNITS):
                self._files.remove(path)
        self._files.write(layout.PLAN, text.encode())
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
        self._tables.write(layout.SAMPLES, samples)
        self.write_plan(plan)
        self._write_json(layout.BASELINE, baseline)  # last: with it the pretrained model counts as sampled

    def write_plan(self, plan: dict[str, Any]) -> None:
        """Write the plan, or write it anew with the trials that a search has chosen."""
        self._files.write(layout.PLAN, _plan_text(plan).encode())

    def write_bounds(self, table: pa.Table) -> None:
        """Write how well the frontier was known after every trial."""
        self._tables.write(layout.BOUNDS, table)

    def bounds(self) -> pa.Table | None:
        """How well the frontier was known after every trial, or None without a certified search."""
        return self._tables.read(layout.BOUNDS)

    def write_units(self, names: Iterable[Names]) -> None:
        """Write unit and meaning of every column, once; ``names`` are those of the trials."""
        if not self._files.exists(layout.UNITS):
            self._tables.write(layout.UNITS, units_table(names))

    def write_preview(self, document: dict[str, Any]) -> None:
        """Write what samples of the pretrained model say of the plan's thresholds."""
        self._write_json(layout.PREVIEW, document)

    def preview(self) -> dict[str, Any] | None:
        """What samples of the pretrained model say of the plan's thresholds, or None."""
        return self._read_json(layout.PREVIEW) if self._files.exists(layout.PREVIEW) else None

    def baseline_samples(self) -> pa.Table | None:
        """One row per sample of the pretrained model, or None where it is known exactly."""
        return self._tables.read(layout.SAMPLES)

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
        if self._files.exists(path) and self._tables.read(path) is not None:
            return False
        self._tables.write(path, table)
        return True

    def replace_trial(self, table: pa.Table) -> None:
        """Write the row of a trial that was trained further, in place of the one before.

        With it what the round has written takes the place of what there was.
        """
        trial_id = table["trial_id"][0].as_py()
        self._tables.write(layout.table(layout.TRIALS, trial_id), table)
        self._rows.outdated(trial_id)

    def beside_round(self, trial_id: str) -> int:
        """The round by which adapter, evaluation, answers and images of a trial are called: mostly 1, its own name."""
        row = self.trial(trial_id)
        if row is not None and beside_round(row) > 1:  # it may have settled since the row was read
            row = self.stored_trial(trial_id)
        return 1 if row is None else beside_round(row)

    def beside(self) -> list[str]:
        """Ids of the trials whose last round has not taken its place yet, by the rows."""
        table = self.trials()
        known = [name for name in ("trial_id", "beside_round") if name in table.column_names]
        return [row["trial_id"] for row in table.select(known).to_pylist() if beside_round(row) > 1]

    def settle(self, trial_id: str) -> None:
        """Give what lies beside a trial its name, and remove what rounds have left that its row is not of.

        Until its row says so, readers take what lies beside: whenever this ends, they find all of one round.
        """
        if (rounds := self.beside_round(trial_id)) > 1:
            self._name(trial_id, rounds)
        for folder in (layout.EVALUATIONS, layout.ANSWERS, layout.IMAGES):
            for file in self._files.names(folder):
                name = layout.name_of(file)
                if name != trial_id and layout.trial_of(name) == trial_id:
                    self._files.remove(f"{folder}/{file}")
        for name in self._files.folders(layout.ADAPTERS):
            if name != trial_id and layout.trial_of(name) == trial_id:
                self._files.remove_folder(f"{layout.ADAPTERS}/{name}")

    def _name(self, trial_id: str, rounds: int) -> None:
        """Write what lies beside a trial in place of what it replaces; the row comes last."""
        beside = layout.of_round(trial_id, rounds)
        for folder in (layout.EVALUATIONS, layout.ANSWERS, layout.IMAGES):
            files = self._files.names(folder)
            found = {
                trial_id + file.removeprefix(beside): file for file in files if layout.name_of(file) == beside
            }
            self._exchange(folder, found, {file for file in files if layout.name_of(file) == trial_id})
        source, target = layout.adapter(trial_id, rounds), layout.adapter(trial_id)
        names = self._files.names(source)
        found = {f"{trial_id}/{name}": f"{beside}/{name}" for name in names}
        self._exchange(layout.ADAPTERS, found, {f"{trial_id}/{name}" for name in self._files.names(target)})
        (row,) = self._tables.of_trials(layout.TRIALS, [trial_id])
        for column, value in (("beside_round", None), ("adapter", target if names else None)):
            place = row.schema.get_field_index(column)
            row = row.set_column(
                place, row.schema.field(place), pa.array([value], row.schema.field(place).type)
            )
        self.replace_trial(row)

    def _exchange(self, folder: str, found: Mapping[str, str], before: Collection[str]) -> None:
        """Copy files of a folder, each to the name that it is found by; others that were there before go."""
        for name, file in found.items():
            self._files.write(f"{folder}/{name}", self._files.read(f"{folder}/{file}"))
        for name in before - found.keys():
            self._files.remove(f"{folder}/{name}")

    def reread(self, trial_ids: Collection[str]) -> None:
        """Read the rows of trials again, which other processes may have replaced."""
        self._rows.reread(self._tables, trial_ids)

    def stored_trial(self, trial_id: str) -> dict[str, Any] | None:
        """The row of one trial by column as its file has it now, or None if it has not finished."""
        found = self._tables.of_trials(layout.TRIALS, [trial_id])
        return found[0].to_pylist()[0] if found else None

    def forget(self, trial_ids: Collection[str]) -> None:
        """Remove the rows and checkpoints of trials, which then count as never begun."""
        self._rows.forget(self._tables, trial_ids)  # first: those of the journal stand for what has come
        for trial_id in trial_ids:
            self.drop_checkpoints(trial_id)
            self._files.remove(layout.table(layout.TRIALS, trial_id))

    def write_history(self, trial_id: str, table: pa.Table) -> None:
        """Write the logged steps of a trial, in place of those written before."""
        self._tables.write(layout.table(layout.HISTORY, trial_id), table)

    def write_evaluations(self, trial_id: str, table: pa.Table, rounds: int = 1) -> None:
        """Write the evaluation samples of a trial, after so many rounds."""
        self._tables.write(layout.table(layout.EVALUATIONS, trial_id, rounds), table)

    def write_answers(self, trial_id: str, table: pa.Table, rounds: int = 1) -> None:
        """Write what a trial for a box of thresholds comes to at some of them, after so many rounds."""
        self._tables.write(layout.table(layout.ANSWERS, trial_id, rounds), table)

    def write_frontier(self, table: pa.Table) -> None:
        """Write what ``cdsweep frontier`` shows."""
        self._tables.write(layout.FRONTIER, table)

    def write_figure(self, name: str, data: bytes) -> str:
        """Write a figure such as ``frontier.svg``; returns its path or URI."""
        return self.write_file(f"{layout.FIGURES}/{layout.check_name(name, 'a figure')}", data)

    def write_adapter(self, trial_id: str, files: Mapping[str, bytes], rounds: int = 1) -> str:
        """Write files of an adapter after so many rounds; returns its folder, relative to the sweep."""
        folder = layout.adapter(trial_id, rounds)
        for name, data in files.items():
            self._files.write(f"{folder}/{layout.check_name(name, 'an adapter file')}", data)
        return folder

    def adapter_url(self, trial_id: str) -> str | None:
        """Where the adapter of a trial lies, if it has one."""
        folder = layout.adapter(trial_id, self.beside_round(trial_id))
        return self.url(folder) if self._files.names(folder) else None

    def image_url(self, trial_id: str) -> str | None:
        """Where the images of a trial lie, if it has any."""
        path = layout.image(trial_id, self.beside_round(trial_id))
        return self.url(path) if self._files.exists(path) else None

    def adapter(self, trial_id: str) -> dict[str, bytes]:
        """Files of the adapter of a trial by name; none if it has none."""
        folder = layout.adapter(trial_id, self.beside_round(trial_id))
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

    def remove_file(self, path: str) -> None:
        """Remove such a file, if it is there."""
        self._files.remove(path)

    def finished(self) -> frozenset[str]:
        """Ids of the trials that have a readable row with a final status."""
        table = self.trials()
        rows = zip(table["trial_id"].to_pylist(), table["status"].to_pylist(), strict=True)
        return frozenset(trial_id for trial_id, status in rows if status in FINAL)

    def trial_ids(self) -> frozenset[str]:
        """Ids of the trials that have a row, readable or not; a listing, without reading any."""
        return frozenset(self._tables.ids(layout.TRIALS))

    def trials(self) -> pa.Table:
        """One row per finished trial, by id; those that this object or the journal has not seen are read."""
        return self._rows.read(self._tables)

    def seen(self) -> pa.Table:
        """The rows that this object has read, without a look for others."""
        return self._rows.seen()

    def trial(self, trial_id: str) -> dict[str, Any] | None:
        """The row of one trial by column, or None if it has not finished."""
        return self._rows.row(self._tables, trial_id)

    def history(self, trial_id: str | None = None) -> pa.Table:
        """One row per logged step, of all trials or of one."""
        return self._joined(layout.HISTORY, history_schema(Names()), trial_id)

    def evaluations(self, trial_id: str | None = None) -> pa.Table:
        """One row per evaluation sample, of all trials or of one."""
        return self._joined(layout.EVALUATIONS, evaluations_schema(Names()), trial_id)

    def answers(self, trial_id: str | None = None) -> pa.Table:
        """One row per thresholds that a trial for a box of them was evaluated at, of all trials or of one."""
        return self._joined(layout.ANSWERS, answers_schema(Names()), trial_id)

    def answering(self) -> frozenset[str]:
        """Ids of the trials that have answers; a listing, without reading any."""
        return frozenset(map(layout.trial_of, self._tables.ids(layout.ANSWERS)))

    def _joined(self, folder: str, empty: pa.Schema, trial_id: str | None) -> pa.Table:
        """All readable tables of a folder, or that of one trial, as one; missing columns are null."""
        if trial_id is None:
            names = self._standing(self._tables.ids(folder))
        else:
            # A history goes on through all rounds.
            names = [trial_id if folder == layout.HISTORY else self._standing_of(trial_id)]
        whole = () if folder == layout.ANSWERS else self._rows.ids  # a search asks finished trials for more
        return joined(self._tables.of_trials(folder, names, whole) or [empty.empty_table()])

    def _standing(self, names: Collection[str]) -> list[str]:
        """Leave out of the names of tables those of rounds that the rows of their trials are not of."""
        further = {layout.trial_of(name) for name in names if layout.trial_of(name) != name}
        kept = {trial_id: self._standing_of(trial_id) for trial_id in further}
        return [name for name in names if kept.get(layout.trial_of(name), name) == name]

    def _standing_of(self, trial_id: str) -> str:
        return layout.of_round(trial_id, self.beside_round(trial_id))

    # ------------------------------------------------------------------ checkpoints

    def save_checkpoint(self, trial_id: str, step: int, files: dict[str, bytes]) -> None:
        """Write a complete checkpoint, then remove older ones but one."""
        checkpoints.save(self._files, trial_id, step, files)

    def load_checkpoint(self, trial_id: str) -> tuple[int, dict[str, bytes]] | None:
        """Step and files of the newest undamaged checkpoint, or None if there is none."""
        return checkpoints.load(self._files, trial_id, self._tables.problems)

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
        taken = leases.take(self._files, self.await_driver(say))
        self.hold(taken.number)
        return taken

    def await_driver(self, say: Callable[[str], None]) -> int:
        """Watch until it is known that nobody drives the sweep; returns the number of the last driver, 0 if none did.

        Args:
            say: Told where that takes a while, because another may drive it.

        Raises:
            UsageError: Another process drives it; says which, and since when.
        """
        return leases.vacant(self._files, lambda: self.journal() or {}, say)

    def hold(self, number: int) -> None:
        """Write for the driver of this number, and only while it drives the sweep."""
        self.lease = number
        self._tables.files = self._files.guarded(leases.Fence(self._files, number))

    def holder(self) -> leases.Lease | None:
        """The last driver, whether it still drives or not; None if there was none."""
        return leases.holder(self._files)

    def write_journal(self, document: dict[str, Any]) -> None:
        """Write how far the sweep is, for those who look at it; and the rows that were seen since the last time."""
        self._rows.write(self._tables)
        self._write_json(layout.JOURNAL, document)

    def journal(self) -> dict[str, Any] | None:
        """What its driver last said, or None if no driver ever ran."""
        self._tables.problems.pop(layout.JOURNAL, None)
        try:
            document = json.loads(self._files.read(layout.JOURNAL))
        except FileNotFoundError:
            return None
        except ValueError as error:  # it can be told from the other files, and is written anew
            self._tables.problems[layout.JOURNAL] = f"damaged, skipped ({error})"
            return None
        return document if isinstance(document, dict) else None

    def request_stop(self) -> None:
        """Ask the driver to stop."""
        leases.request_stop(self._files)

    def stop_requested(self) -> bool:
        """Whether somebody asked this driver to stop; a look at one file."""
        assert self.lease is not None, "only a driver is asked"
        return leases.stop_requested(self._files, self.lease)

    def tracked_as(self) -> str:
        """What tells this sweep from all others of its name in trackers, which keep runs when a sweep is removed."""
        if not self._files.exists(layout.TRACKED):
            self._write_json(layout.TRACKED, {"sweep_id": secrets.token_hex(4)})
        return str(self._read_json(layout.TRACKED)["sweep_id"])

    # ------------------------------------------------------------------ files

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
