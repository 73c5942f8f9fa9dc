"""Finding sweeps: the names in a storage, and what a user calls one."""

import difflib
from contextlib import suppress

import pyarrow.compute as pc

from orchestrator.errors import UsageError
from orchestrator.results.files import Files, addresses
from orchestrator.results.store import SweepStore
from trainers.config import INTERPOLATED

DEFAULT_STORAGE = "results"


def list_sweeps(storage: str) -> list[str]:
    """Names of the sweeps in a storage, sorted; empty if there is no such place."""
    found = []
    for name in Files(storage).folders():
        with suppress(UsageError):  # no name that a sweep can have
            if SweepStore(storage, name).exists():
                found.append(name)
    return found


def require_storage(storage: str) -> None:
    """Raise UsageError if a storage is not there, unless it is the default one, in which nothing may have run yet."""
    if storage != DEFAULT_STORAGE and not (files := Files(storage)).is_folder():
        raise UsageError(f"there is no storage {files.url()}: a sweep that runs with --storage makes it")


def find_sweep(sweep: str, storage: str) -> SweepStore:
    """The sweep that a user means.

    Args:
        sweep: A name in the storage, or the path or URI of the sweep's directory.
        storage: Where names are looked for.

    Raises:
        UsageError: There is no such sweep; the nearest names are offered.
    """
    elsewhere = "/" in sweep
    place, name = addresses.split(sweep) if elsewhere else (storage, sweep)
    candidates = [(place, name)] if elsewhere else [(storage, sweep), (".", sweep)]
    for folder, candidate in candidates:
        try:
            store = SweepStore(folder, candidate)
        except UsageError:
            continue  # "." or "..", or not a name at all: said below, with the names there are
        if store.exists():
            return store
    known = list_sweeps(place)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif known:
        hint = f"there are: {', '.join(known[:10])}{', …' if len(known) > 10 else ''}"
    else:
        hint = "there are no sweeps yet" if Files(place).is_folder() else "there is no such storage"
    raise UsageError(f"no sweep {sweep!r} in {Files(place).url()}: {hint}")


def find_trial(store: SweepStore, written: str) -> str:
    """The id of the trial that a user means by an id or its beginning.

    Raises:
        UsageError: There is none, or several.
    """
    known: list[str] = [trial["trial_id"] for trial in store.plan()["trials"]]
    rows = store.trials()
    known += rows["trial_id"].filter(pc.equal(rows["method"], INTERPOLATED)).to_pylist()
    found = [trial_id for trial_id in known if trial_id.startswith(written)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"{len(found)} trials of {store.name} begin with {written!r}: {', '.join(found[:5])}"
        )
    near = difflib.get_close_matches(written, known, n=3, cutoff=0.5) or known[:5]
    raise UsageError(f"no trial {written!r} in {store.name}; there are: {', '.join(near)}")
