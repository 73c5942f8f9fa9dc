"""Whole files on any filesystem of pyarrow or fsspec: a file appears complete or not at all."""

import contextlib
import copy
import errno
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from orchestrator.errors import CdsweepError, StorageError
from orchestrator.results.files import addresses, exclusive, filesystems
from orchestrator.results.files.retries import TornReadError, full, passing, patience_here
from trainers.patience import Patience, brief, patiently

T = TypeVar("T")

_CHANGES = frozenset({"write", "create", "remove"})
_NO_SYNC = frozenset(
    {errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.ENOTSUP, errno.EISDIR, errno.EACCES, errno.EPERM}
)
"""What file systems answer that do not sync folders: shared and mounted ones, such as SMB and FUSE."""


class Files:
    """Reads and writes whole files under one root.

    Local files are written under a hidden temporary name in the same directory, synced, renamed over the
    target, and the directory synced. Object stores show an object only when its upload is complete, so
    there one put is enough. Whatever is not local may be out of reach for a while, and a local disk may be
    full: every operation is harmless to repeat, and is repeated for as long as ``patience`` lasts. Picklable,
    so that a worker on another machine can use it.
    """

    def __init__(
        self,
        location: str,
        filesystem: "pafs.FileSystem | None" = None,
        *,
        patience: Patience | None = None,
    ) -> None:
        """Resolve a location.

        Args:
            location: A path, or a URI (``file://``, ``s3://``, ``gs://``, …; see ``filesystems.resolve``). A
                relative path is made absolute, so that a later change of directory does no harm.
            filesystem: Where ``location`` is a path of this filesystem.
            patience: With a storage that is out of reach or full; by default what the environment says.

        Raises:
            StorageError: The URI cannot be understood, or holds credentials.
        """
        place = (
            filesystems.resolve(location)
            if filesystem is None
            else filesystems.Place(filesystem=filesystem, root=location.rstrip("/"), location=location)
        )
        self._filesystem, self._root, self._location = place.filesystem, place.root, place.location
        self._patience = patience_here() if patience is None else patience
        self.guard: Callable[[], None] | None = None
        """Asked before every change; it raises to refuse."""

    def guarded(self, guard: Callable[[], None]) -> Self:
        """Return the same files, of which every change first asks ``guard``, which raises to refuse."""
        other = copy.copy(self)
        other.guard = guard
        return other

    @property
    def local(self) -> bool:
        """Whether renames are available; object stores have none."""
        return isinstance(self._filesystem, pafs.LocalFileSystem)

    def path(self, name: str = "") -> str:
        """Path of ``name`` on the filesystem."""
        return f"{self._root}/{name}" if name else self._root

    def url(self, name: str = "") -> str:
        """What a person can open: an absolute path, or a URI; never with credentials."""
        return addresses.join(self._location, name) if name else self._location

    def write(self, name: str, data: bytes) -> None:
        """Write a file, complete or not at all; an older one of that name is replaced.

        Raises:
            StorageError: It cannot be written.
        """
        path = self.path(name)
        if self.local:
            self._do("write", name, lambda: _replace(Path(path), data, self.guard))
        else:
            self._do("write", name, lambda: filesystems.put(self._filesystem, path, data))

    def create(self, name: str, data: bytes) -> bool:
        """Write a file where there is none of that name.

        Returns:
            Whether it holds ``data``, which should not equal what another writes; False if it was there, and stays.

        Raises:
            StorageError: It cannot be written, or the storage cannot tell whether it is there in the same step.
        """
        path = self.path(name)

        def attempt() -> bool:
            try:
                if self.local:
                    _create(Path(path), data)
                else:
                    exclusive.create(self._filesystem, path, self.url(name), data)
            except FileExistsError:
                return self.read(name) == data  # of an earlier attempt, whose answer was lost
            return True

        return self._do("create", name, attempt)

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            FileNotFoundError: There is none.
            StorageError: It cannot be read.
        """

        def whole() -> bytes:
            with self._filesystem.open_input_file(self.path(name)) as stream:
                size, data = stream.size(), bytes(stream.read())
            if len(data) != size:
                raise TornReadError(f"{len(data)} of {size} bytes came")
            return data

        return self._do("read", name, whole)

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None if there is no such file."""

        def look() -> "pafs.FileInfo":
            filesystems.refresh(self._filesystem)
            return self._filesystem.get_file_info(self.path(name))

        info = self._do("read", name, look)
        return int(info.size) if info.type == pafs.FileType.File else None

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.size(name) is not None

    def is_folder(self) -> bool:
        """Whether the root is there, or in an object store anything below it."""
        info = self._do("look at", "", lambda: self._filesystem.get_file_info(self._root))
        return bool(info.type == pafs.FileType.Directory)

    def names(self, folder: str = "") -> list[str]:
        """Names of the files in a folder, sorted, without unfinished ones; empty if there is no folder."""
        return self._list(folder, pafs.FileType.File)

    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders in a folder, sorted; empty if there is none."""
        return self._list(folder, pafs.FileType.Directory)

    def sizes(self) -> dict[str, int]:
        """Bytes of every file below the root, unfinished ones too, by its path in it; none if there is no root."""
        return self._do("list", "", lambda: filesystems.tree(self._filesystem, self._root))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._filesystem.delete_file(self.path(name))

        self._do("remove", name, delete)

    def remove_folder(self, name: str) -> None:
        """Remove a folder and all in it, if it is there."""
        self._do("remove", name, lambda: filesystems.remove_folder(self._filesystem, self.path(name)))

    def _list(self, folder: str, kind: "pafs.FileType") -> list[str]:
        found = self._do("list", folder, lambda: filesystems.entries(self._filesystem, self.path(folder)))
        names = (name for name, its in found if its == kind)
        return sorted(name for name in names if name and not name.startswith("."))

    def _do(self, verb: str, name: str, operation: Callable[[], T]) -> T:
        """Run an operation, patiently where the storage is out of reach, or a local disk full."""

        def attempt() -> T:
            if self.guard is not None and verb in _CHANGES:
                self.guard()  # again after every wait
            return operation()

        with self._errors(verb, name):
            if self.local:
                what = f"{verb} {self.url(name)} on a full disk"
                return patiently(attempt, what, self._patience, passes=full, seconds=self._patience.full)
            return patiently(attempt, f"{verb} {self.url(name)}", self._patience, passes=passing)

    @contextlib.contextmanager
    def _errors(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except CdsweepError:
            raise
        except FileNotFoundError:
            if verb == "read":
                raise
            raise StorageError(f"cannot {verb} {self.url(name)}: it is not there") from None
        except Exception as error:
            # Clients behind fsspec raise errors of their own kinds; elsewhere such an error is a defect.
            known = isinstance(error, (OSError, pa.ArrowException))
            if not known and filesystems.fsspec_of(self._filesystem) is None:
                raise
            reason = brief(error)
            if self.local and (full(error) or getattr(error, "errno", None) == errno.EFBIG):
                reason = f"the disk is full, or a quota is used up ({reason}); nothing was written"
            elif not self.local and passing(error):
                reason = f"{reason} (tried again for {self._patience.seconds:g} s)"
            raise StorageError(f"cannot {verb} {self.url(name)}: {reason}") from error


def _replace(path: Path, data: bytes, guard: Callable[[], None] | None) -> None:
    """Put ``data`` at ``path`` in one step that survives a crash of the process or of the machine.

    ``guard`` is asked again at the last moment: a process can be paused while it writes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    _written(temporary, data)
    try:
        if guard is not None:
            guard()
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _create(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` if nothing is there, in the same step; raises FileExistsError if something is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _written(path, data)
    _sync_folder(path.parent)


def _written(path: Path, data: bytes) -> None:
    """Make a file, synced; none is left after an error."""
    with path.open("xb") as stream:
        try:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _sync_folder(path: Path) -> None:
    """Make a rename survive a crash of the machine, on file systems that can: others are as safe as they are."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder that may be written and not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)
