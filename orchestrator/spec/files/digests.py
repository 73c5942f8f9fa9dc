"""SHA-256 of files and directories: the same wherever they lie and whenever they were written.

Weights are gigabytes, so the digest of a large file is kept in the user's cache directory under its path, and holds
while size, times and inode of the file are what they were.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

_LARGE = 8 * 2**20
"""Bytes from which a digest is kept; less is read in milliseconds."""
_SETTLED = 2 * 10**9
"""Nanoseconds after its last change from which a file's times tell the next change, whatever their resolution."""


def tree_digest(root: Path, files: Iterable[Path]) -> str:
    """Return the digest of files below a directory: of their names relative to it, and of what they hold.

    Raises:
        OSError: One cannot be read.
    """
    digest = hashlib.sha256()
    known = _Kept()
    for name, path in sorted((file.relative_to(root).as_posix(), file) for file in files):
        digest.update(f"{name}\0{known.digest(path)}\n".encode())
    known.write()
    return digest.hexdigest()


def files_below(root: Path) -> list[Path]:
    """Return all files below a directory, hidden ones and caches left out.

    Raises:
        OSError: It cannot be read.
    """
    return _below(root, ())


def _below(folder: Path, above: tuple[Path, ...]) -> list[Path]:
    here = folder.resolve()
    if here in above:  # a link to where it lies itself
        return []
    found = []
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name == "__pycache__":
            continue
        if path.is_dir():
            found += _below(path, (*above, here))
        elif path.is_file():  # and no link to nowhere
            found.append(path)
    return found


class _Kept:
    """Digests of large files, by absolute path."""

    def __init__(self) -> None:
        self._file = (
            Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cdsweep" / "digests.json"
        )
        self._known: dict[str, Any] = {}
        self._changed = False

    def digest(self, path: Path) -> str:
        """Return the digest of a file."""
        state = path.stat()
        if state.st_size < _LARGE:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        if not self._known:
            self._known = self._read()
        place = str(path.resolve())
        times = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
        if isinstance(kept := self._known.get(place), dict) and kept.get("state") == times:
            return str(kept["sha256"])
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) > _SETTLED:
            self._known[place] = {"state": times, "sha256": found}
            self._changed = True
        return found

    def _read(self) -> dict[str, Any]:
        try:
            kept = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # absent or damaged: everything is read again
            return {}
        return kept if isinstance(kept, dict) else {}

    def write(self) -> None:
        """Keep what was found; two processes at once lose one's digests, which are then found again."""
        if not self._changed:
            return
        with suppress(OSError):  # a home that cannot be written: the files are read every time
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=self._file.parent, delete=False, encoding="utf-8"
            ) as file:
                json.dump(self._known, file)
            Path(file.name).replace(self._file)
