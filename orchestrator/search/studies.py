"""Where studies of Optuna are kept: a journal file, or a database.

Both are what optuna-dashboard opens: ``optuna-dashboard FILE`` or ``optuna-dashboard URL``.
"""

import re
from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from orchestrator.errors import StorageError


def open_storage(storage: str | Path) -> BaseStorage:
    """Return the storage of studies, made if it is not there.

    Args:
        storage: A journal file, or the URL of a database, such as ``sqlite:///studies.db``.

    Raises:
        StorageError: It cannot be opened, or is none.
    """
    try:
        if "://" in str(storage):
            return RDBStorage(str(storage))
        # The lock of a relative path is not found again from elsewhere.
        path = Path(storage).absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = JournalFileOpenLock(str(path))  # unlike the default one it needs no symbolic links
        backend = JournalFileBackend(str(path), lock_obj=lock)
        _mend(path, lock)
        return JournalStorage(backend)
    except Exception as error:  # every driver of a database has errors of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise StorageError(
            f"the studies in {shown(storage)} cannot be opened: {without_password(reason)}"
        ) from error


def shown(storage: str | Path) -> str:
    """Return what a storage is called in messages."""
    return without_password(str(storage))


def without_password(text: str) -> str:
    """Return a text in which URLs have no password."""
    return re.sub(r"(://[^/\s:@]*):[^/\s]*@", r"\1:***@", text)


def _mend(path: Path, lock: JournalFileOpenLock) -> None:
    """Cut off a line that was not written to its end, or the next one would be appended to it and be lost with it."""
    lock.acquire()
    try:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
    finally:
        lock.release()
