"""Who drives a sweep: one process at a time.

    lease/000007.json   created where there was none and never written again: the seventh driver of this sweep
    lease/000007.stop   somebody asks it to stop
    journal.json        rewritten by the driver every few seconds, with its number and a beat that counts up

The highest number drives, and its holder looks before it writes anything. A number is followed by the next one when
its driver has let go, when its process is seen to be gone, or when its beat has not changed for the whole length of the
lease on the clock of whoever watches: no two clocks are compared, and no names of hosts.
"""

import getpass
import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.errors import LeaseLostError, StorageError, UsageError
from orchestrator.results import layout
from orchestrator.results.files import NOT_EXCLUSIVE, Files

HEARTBEAT_SECONDS = 3.0
"""Between two writes of a driver's journal."""
LEASE_SECONDS = 5 * HEARTBEAT_SECONDS
"""A beat that does not change for so long has no driver behind it that can write."""
_LOOK_SECONDS = 0.5
"""Between two looks at a beat, or at a lease that is being written."""
_LOOKS = 10
"""At a lease that is being written; then its writing was cut off."""
_FRESH_SECONDS = 1.0
"""A look at who drives serves the writes that follow within this time."""

DRIVING = "running"
"""State of a journal whose driver has not let go."""


def _owner() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()} (process {os.getpid()})"


def _now() -> float:
    """Seconds on a clock of this machine that goes on where it sleeps, if it has one."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


def _process(pid: int) -> str | None:
    """What no other process ever has, or None if it does not run, or the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        space = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return None
    return None if state in ("Z", "X") else f"{boot} {space} {pid} {fields[18]}"


@dataclass(frozen=True, kw_only=True)
class Lease:
    """What a driver leaves for others to read."""

    number: int
    owner: str = field(default_factory=_owner)
    since: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """ISO 8601, UTC, on the owner's clock: to be shown."""
    seconds: float = LEASE_SECONDS
    process: str | None = field(default_factory=lambda: _process(os.getpid()))
    """Boot, namespace, number and start of the owner's process, which no other process ever has; None if unknown."""
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))

    def __str__(self) -> str:
        """Name the owner, and since when."""
        return f"{self.owner} since {self.since}"


class Watch:
    """Tells for how long something has not changed, as far as this process has watched."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self._seen: Any = None
        self._looked = self._quiet = 0.0

    def quiet(self, seen: Any) -> float:
        """Return for how many seconds it has been as it is; 0 at the first look.

        A look that came late counts as two heartbeats: what kept it may have kept the driver too.
        """
        now = time.monotonic()
        if seen != self._seen:
            self._seen, self._quiet = seen, 0.0
        else:
            self._quiet += min(now - self._looked, 2 * HEARTBEAT_SECONDS)
        self._looked = now
        return self._quiet


class Fence:
    """Lets the holder of a number write while there is no higher one; every write asks it."""

    def __init__(self, files: Files, number: int) -> None:
        """Stand before the files of a sweep."""
        self._files, self._number = files, number
        self._passed = -_FRESH_SECONDS

    def __getstate__(self) -> dict[str, Any]:
        """Leave the look behind: another process has another clock."""
        return {**self.__dict__, "_passed": -_FRESH_SECONDS}

    def __call__(self) -> None:
        """Look, unless that was done a moment ago.

        Raises:
            LeaseLostError: Another process drives the sweep, or it was removed.
        """
        began = _now()
        if began - self._passed <= _FRESH_SECONDS:
            return
        if (newest := _newest(self._files.names(layout.LEASES))) != self._number:
            now = holder(self._files)
            what = "was removed" if newest is None else f"is driven by {now or 'another process'}"
            raise LeaseLostError(
                f"{self._files.url()} {what}: this driver has stopped, and writes nothing more"
            )
        self._passed = began


def vacant(files: Files, journal: Callable[[], dict[str, Any]], say: Callable[[str], None]) -> int:
    """Watch until it is known that nobody drives a sweep; returns the number of its last driver, 0 if none did.

    Args:
        files: Of the sweep.
        journal: Reads what its driver last said; empty if that is nothing.
        say: Told that there is something to wait for.

    Raises:
        UsageError: Another process drives it; says which, and since when.
    """
    watch, first = Watch(), None
    while (number := _newest(files.names(layout.LEASES))) is not None:
        said = journal()
        if said.get("lease") == number and said.get("state") != DRIVING:
            break  # it has let go
        other, beat = _read(files, number), (number, said.get("lease"), said.get("beat"))
        if other is not None and alive(other.process) is False:
            break
        if first is None:
            first = beat
            say(f"looking whether {other or 'another process'} still drives {files.url()}")
        elif beat != first:
            raise _refused(files, other)
        if watch.quiet(beat) >= (LEASE_SECONDS if other is None else other.seconds):
            break
        time.sleep(_LOOK_SECONDS)
    return number or 0


def take(files: Files, last: int) -> Lease:
    """Become the driver that follows the last one.

    Raises:
        UsageError: Another process was faster; says which.
        StorageError: The storage cannot create a file only where there is none.
    """
    mine = Lease(number=last + 1)
    text = json.dumps(asdict(mine), indent=2)
    if not files.create(layout.lease(mine.number), text.encode()):
        raise _refused(files, _created(files, mine.number))
    if files.create(layout.lease(mine.number), f"{text}\n".encode()):
        files.remove(layout.lease(mine.number))
        raise StorageError(f"{files.url()}: {NOT_EXCLUSIVE}: it replaced one that was there")
    return mine


def holder(files: Files) -> Lease | None:
    """Return the last driver of a sweep, whether it still drives it or not; None if there was none."""
    number = _newest(files.names(layout.LEASES))
    return None if number is None else _read(files, number)


def request_stop(files: Files) -> None:
    """Ask the present driver to stop; nothing if there never was one."""
    if (number := _newest(files.names(layout.LEASES))) is not None:
        files.write(layout.stop_request(number), b"")


def stop_requested(files: Files, number: int) -> bool:
    """Whether the driver of this number is asked to stop; one request, also of an object store."""
    with suppress(FileNotFoundError):
        files.read(layout.stop_request(number))
        return True
    return False


def alive(process: str | None) -> bool | None:
    """Whether a process of this machine runs; None if it is not of this machine, or that cannot be known."""
    here = _process(os.getpid())
    if process is None or here is None or process.split()[:2] != here.split()[:2]:
        return None
    return _process(int(process.split()[2])) == process


def _created(files: Files, number: int) -> Lease | None:
    """A lease that appeared a moment ago, once it is written: on a disk its name is there before what is in it."""
    for _ in range(_LOOKS):
        if (found := _read(files, number)) is not None:
            return found
        time.sleep(_LOOK_SECONDS)
    return None


def _refused(files: Files, other: Lease | None) -> UsageError:
    return UsageError(
        f"{files.url()} is running already, driven by {other or 'another process'}; `cdsweep stop {files.url()}` "
        "stops it"
    )


def _newest(names: list[str]) -> int | None:
    numbers = (name.removesuffix(".json") for name in names if name.endswith(".json"))
    return max((int(number) for number in numbers if number.isdigit()), default=None)


def _read(files: Files, number: int) -> Lease | None:
    """A lease, or None where its writing was cut off."""
    try:
        return Lease(**json.loads(files.read(layout.lease(number))))
    except (FileNotFoundError, ValueError, TypeError):
        return None
