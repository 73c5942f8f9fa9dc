"""The storage: a small file is written, read, replaced, listed and removed, as a sweep does."""

import contextlib
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator.doctor.finding import Finding, Patient
from orchestrator.errors import StorageError
from orchestrator.results.files import NOT_EXCLUSIVE, Files, Patience, addresses

_MEND = (
    "look at the name of the bucket or directory, at its permissions and quota, and for a bucket at the credentials "
    "(AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, or the machine's role)"
)


def check_storage(patient: Patient) -> Iterator[Finding]:
    """Use the storage as a sweep does, and leave nothing there."""
    shown = addresses.masked(patient.storage)
    began = time.monotonic()
    try:
        # An outage is to be told of now, not waited out.
        files = Files(patient.storage, patience=Patience(seconds=0.0))
        before = _existing(files)
        try:
            wrong = _use(files)
        finally:
            _tidy(files, before)
    except (StorageError, FileNotFoundError) as error:
        yield Finding(name="storage", status="fail", found=addresses.masked(str(error)), mend=_MEND)
        return
    seconds = time.monotonic() - began
    if wrong:
        yield Finding(
            name="storage",
            status="fail",
            found=f"{shown}: {wrong}",
            mend="use a storage whose readers see a write at once; caches in between (gateways, NFS attribute caches) "
            "must be off",
        )
        return
    slow = seconds > 5
    yield Finding(
        name="storage",
        status="warn" if slow else "ok",
        found=f"{files.url()}: written, read, listed and removed in {seconds:.2f} s",
        mend="a heartbeat is written every three seconds: use a storage nearer to the cluster"
        if slow
        else "",
    )


def _use(files: Files) -> str:
    """Return what is wrong with the answers; empty if nothing."""
    folder = f".doctor-{secrets.token_hex(6)}"
    name = f"{folder}/probe"
    try:
        for content in (b"first", secrets.token_bytes(4096)):
            files.write(name, content)
            if files.read(name) != content:
                return "what was read is not what was written"
        if files.names(folder) != ["probe"]:
            return "a file that was written is not listed"
        if files.create(name, b"of another"):
            return f"{NOT_EXCLUSIVE}: it replaced one that was there"
        files.remove(name)
        if files.exists(name) or files.names(folder):
            return "a file that was removed is still there"
    finally:
        with contextlib.suppress(StorageError):
            files.remove_folder(folder)
    return ""


def _existing(files: Files) -> set[Path]:
    """The folders of a local storage that are there already."""
    if not files.local:
        return set()
    path = Path(files.path())
    return {folder for folder in (path, *path.parents) if folder.exists()}


def _tidy(files: Files, before: set[Path]) -> None:
    """Remove the folders that the probe has made."""
    path = Path(files.path())
    for folder in (path, *path.parents) if files.local else ():
        if folder in before:
            return
        with contextlib.suppress(OSError):
            folder.rmdir()
