"""Whole files on any pyarrow filesystem: a file appears complete or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from orchestrator.errors import StorageError


class Files:
    """Reads and writes whole files under one root.

    Local files are written under a hidden temporary name in the same directory, synced, renamed over the
    target, and the directory synced. Object stores show an object only when its upload is complete, so
    there one put is enough. Picklable, so that a worker on another machine can use it.
    """

    def __init__(self, location: str, filesystem: "pafs.FileSystem | None" = None) -> None:
        """Resolve a location.

        Args:
            location: A path, or a URI that pyarrow knows (``file://``, ``s3://``, ``gs://``, …). A
                relative path is made absolute, so that a later change of directory does no harm.
            filesystem: Where ``location`` is a path of this filesystem.

        Raises:
            StorageError: The URI cannot be understood.
        """
        self._prefix = ""
        if filesystem is not None:
            self._filesystem, self._root = filesystem, location.rstrip("/")
        elif "://" in location:
            try:
                self._filesystem, root = pafs.FileSystem.from_uri(location)
            except (pa.ArrowException, OSError, ValueError, ImportError) as error:
                raise StorageError(f"cannot use the storage {location!r}: {error}") from error
            self._root = root.rstrip("/")
            if not self.local:
                self._prefix = location.split("://", 1)[0] + "://"
        else:
            self._filesystem = pafs.LocalFileSystem()
            self._root = str(Path(location).expanduser().absolute())

    @property
    def local(self) -> bool:
        """Whether renames are available; object stores have none."""
        return isinstance(self._filesystem, pafs.LocalFileSystem)

    def path(self, name: str = "") -> str:
        """Path of ``name`` on the filesystem."""
        return f"{self._root}/{name}" if name else self._root

    def url(self, name: str = "") -> str:
        """What a person can open: an absolute path, or a URI."""
        return self._prefix + self.path(name)

    def write(self, name: str, data: bytes) -> None:
        """Write a file, complete or not at all; an older one of that name is replaced.

        Raises:
            StorageError: It cannot be written.
        """
        path = self.path(name)
        with self._errors("write", name):
            if self.local:
                _replace(Path(path), data)
                return
            self._filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
            stream = self._filesystem.open_output_stream(path, compression=None)
            stream.write(data)
            # Only here does the object appear. A `with` would publish a torn one after an error.
            stream.close()

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            FileNotFoundError: There is none.
            StorageError: It cannot be read.
        """
        with self._errors("read", name), self._filesystem.open_input_file(self.path(name)) as stream:
            return bytes(stream.read())

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None if there is no such file."""
        with self._errors("read", name):
            info = self._filesystem.get_file_info(self.path(name))
        return int(info.size) if info.type == pafs.FileType.File else None

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.size(name) is not None

    def names(self, folder: str = "") -> list[str]:
        """Names of the files in a folder, sorted, without unfinished ones; empty if there is no folder."""
        return self._list(folder, pafs.FileType.File)

    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders in a folder, sorted; empty if there is none."""
        return self._list(folder, pafs.FileType.Directory)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._errors("remove", name), contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_file(self.path(name))

    def remove_folder(self, name: str) -> None:
        """Remove a folder and all in it, if it is there."""
        with self._errors("remove", name), contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_dir(self.path(name))

    def _list(self, folder: str, kind: "pafs.FileType") -> list[str]:
        selector = pafs.FileSelector(self.path(folder), allow_not_found=True)
        with self._errors("list", folder):
            found = self._filesystem.get_file_info(selector)
        return sorted(info.base_name for info in found if info.type == kind and info.base_name[0] != ".")

    @contextlib.contextmanager
    def _errors(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            if verb == "read":
                raise
            raise StorageError(f"cannot {verb} {self.url(name)}: it is not there") from None
        except (OSError, pa.ArrowException) as error:
            reason = getattr(error, "strerror", None) or error
            raise StorageError(f"cannot {verb} {self.url(name)}: {reason}") from error


def _replace(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` in one step that survives a crash of the process or of the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
