"""Tables of one sweep, a Parquet file each: one that is bad is skipped and named, and the others are read."""

import io
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.errors import StorageError
from orchestrator.results import layout
from orchestrator.results.files import Files
from orchestrator.results.schema import VERSION, up_to_date, version_of

_BLOCK = 1000
"""Files whose rows are joined at a time."""


class Tables:
    """Reads and writes them."""

    def __init__(self, files: Files, *, tolerant: bool = False, memory: dict[Any, Any] | None = None) -> None:
        """Read from ``files``.

        Args:
            files: Of the sweep.
            tolerant: Skip tables of another version of the schema too, which else are an error.
            memory: Keeps what was read of finished trials, by path.
        """
        self.files = files
        self.problems: dict[str, str] = {}
        """What was wrong with files at their last reading, by path."""
        self._tolerant, self._memory = tolerant, memory

    def ids(self, folder: str) -> list[str]:
        """Ids of the trials that have a table in a folder, ascending; a listing, without reading any."""
        names = self.files.names(folder)
        return [name.removesuffix(".parquet") for name in names if name.endswith(".parquet")]

    def of_trials(
        self, folder: str, trial_ids: Iterable[str], finished: Collection[str] = ()
    ) -> list[pa.Table]:
        """Those of some trials in a folder that are there and can be used, joined by blocks.

        Args:
            folder: That they lie in.
            trial_ids: Of the trials.
            finished: Ids of those whose tables never change.
        """

        def remembered(trial_id: str) -> pa.Table | None:
            path = layout.table(folder, trial_id)
            if self._memory is not None and path in self._memory:
                return self._memory[path]
            table = self.read(path)
            if self._memory is not None and trial_id in finished and path not in self.problems:
                self._memory[path] = table
            return table

        wanted, tables = list(trial_ids), []
        # Threads because of object stores, where each file costs a round trip.
        with ThreadPoolExecutor(max_workers=8) as pool:
            for begin in range(0, len(wanted), _BLOCK):
                read = pool.map(remembered, wanted[begin : begin + _BLOCK])
                if found := [table for table in read if table is not None]:
                    tables.append(joined(found))  # tables of one row cost a hundred times what is in them
        return tables

    def read(self, path: str) -> pa.Table | None:
        """A table, or None, with a line in ``problems``, if it is missing or cannot be used.

        Raises:
            StorageError: It has another version of the schema, and is not to be skipped, or cannot be reached.
        """
        self.problems.pop(path, None)
        try:
            file = pq.ParquetFile(io.BytesIO(self.files.read(path)))
            version = version_of(file.schema_arrow)
            if version is None:
                self.problems[path] = "not written by cdsweep, skipped"
            elif version == VERSION:
                return up_to_date(file.read())
            elif self._tolerant:
                self.problems[path] = f"version {version} of the results' schema, not {VERSION}: skipped"
            else:
                # Not skipped: half of a sweep, read as if it were all, would mislead.
                raise StorageError(
                    f"{self.files.url(path)} has version {version} of the results' schema, and this cdsweep reads "
                    f"version {VERSION}: use the cdsweep that wrote it, or a newer one"
                )
        except FileNotFoundError:
            return None
        except (pa.ArrowException, OSError, ValueError) as error:
            self.problems[path] = f"damaged, skipped ({str(error).splitlines()[0]})"
        return None

    def write(self, path: str, table: pa.Table) -> None:
        """Write a table, in place of an older one."""
        if version_of(table.schema) != VERSION:
            raise ValueError(f"a table for {path} must come from results.schema, with its version")
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.files.write(path, sink.getvalue().to_pybytes())


def joined(tables: Collection[pa.Table]) -> pa.Table:
    """Return the rows of tables one below the other; columns that one lacks are null there."""
    return pa.concat_tables(tables, promote_options="default").combine_chunks()
