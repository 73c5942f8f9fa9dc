"""``cdsweep rm`` and ``cdsweep gc``: removing a sweep, and what nothing refers to."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.errors import UsageError
from orchestrator.terminal import AsJson, Storage, Sweep, find_sweep, print_json, reported, say, stdout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.results.garbage import Garbage

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def rm(sweep: Sweep, storage: Storage = "results", yes: Yes = False, as_json: AsJson = False) -> None:
    """Remove a sweep with all its results; samples that others use stay."""
    with reported():
        from orchestrator.results.garbage import whole_sweep

        store = find_sweep(sweep, storage)
        store.await_driver(say)
        found = whole_sweep(store.url())
        _remove([found], f"remove {store.url()} with {len(store.trial_ids())} results", yes=yes)
        if as_json:
            print_json({"sweep": store.name, "path": store.url(), "bytes": found.size})
        else:
            stdout().print(f"removed {store.url()}, {_megabytes(found.size)}", soft_wrap=True)


def gc(storage: Storage = "results", yes: Yes = False, as_json: AsJson = False) -> None:
    """Remove samples and checkpoints of a storage that no sweep refers to; with --json and without --yes, list them."""
    with reported():
        from orchestrator.results.catalog import require_storage

        require_storage(storage)
        found, unreadable = garbage(storage)
        for line in unreadable:
            say(f"warning: {line}: what it may refer to stays")
        size = sum(each.size for each in found)
        removed = yes or not as_json
        if not as_json:
            for each in found:
                stdout().print(f"{_megabytes(each.size):>10}  {each.what}  {each.folder}", soft_wrap=True)
        if found and removed:
            _remove(found, f"remove these, {_megabytes(size)}", yes=yes)
        if as_json:
            documents = [each.to_json() for each in found]
            print_json({"storage": storage, "garbage": documents, "bytes": size, "removed": removed})
        else:
            stdout().print(f"removed {_megabytes(size)}" if found else "there is nothing to remove")


def garbage(storage: str) -> "tuple[list[Garbage], list[str]]":
    """Return what nothing in a storage refers to, and a line per sweep that cannot be read."""
    from orchestrator.plan import base_config
    from orchestrator.report.status import UNREADABLE, status_document
    from orchestrator.report.sweep import read_plan, read_spec
    from orchestrator.results.catalog import list_sweeps
    from orchestrator.results.garbage import unused_checkpoints, unused_samples
    from orchestrator.results.sample_cache import samples_key
    from orchestrator.results.store import SweepStore
    from orchestrator.spec import continues

    found: list[Garbage] = []
    unreadable: list[str] = []
    keys: set[str] = set()
    for name in list_sweeps(storage):
        store = SweepStore(storage, name)
        there = store.checkpointed()  # before the plan, which knows every trial that has any
        try:
            spec, state = read_spec(store), status_document(store)["state"]
            keys.add(samples_key(base_config(spec)))
            if state in _DRIVEN or (state != "finished" and continues(spec)):  # a search may go on from any
                continue
            planned = {trial.trial_id for trial in read_plan(store).trials}
            found += unused_checkpoints(store.url(), planned - store.finished(), there)
        except UNREADABLE as error:
            unreadable.append(f"{store.url()} cannot be read ({str(error).partition(chr(10))[0]})")
    if not unreadable:
        found += unused_samples(storage, keys)
    return found, unreadable


_DRIVEN = ("running", "waiting")


def _remove(found: "Sequence[Garbage]", question: str, *, yes: bool) -> None:
    """Remove, after asking.

    Raises:
        UsageError: The answer was no, or nobody is there to answer.
    """
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"nothing is removed: nobody is there to be asked, and --yes says to {question}")
        if not typer.confirm(f"{question[0].upper()}{question[1:]}?", err=True):
            raise UsageError("nothing is removed")
    for each in found:
        each.remove()


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
