"""``cdsweep describe``: one trial, whole."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from orchestrator.terminal import AsJson, Storage, Sweep, Trial, find_sweep, print_json, reported, stdout

if TYPE_CHECKING:
    from orchestrator.results.store import SweepStore


def describe(sweep: Sweep, trial: Trial, storage: Storage = "results", as_json: AsJson = False) -> None:
    """Show all that is known of one trial: how it ended and why, its figures, files and settings."""
    with reported():
        from rich.text import Text

        from orchestrator.report.terminal.tables import plain_table
        from orchestrator.results.catalog import find_trial

        store = find_sweep(sweep, storage)
        document = described(store, find_trial(store, trial))
        if as_json:
            print_json(document)
            return
        console = stdout()
        console.print(f"{document['trial_id']}  {document['status']}: {document['label']}", soft_wrap=True)
        if document["error"]:
            console.print(Text(document["error"]), soft_wrap=True)
        table = plain_table("what", "value")
        for name, value in _lines(document):
            table.add_row(name, value)
        console.print(table)


def described(store: "SweepStore", trial_id: str) -> dict[str, Any]:
    """Return the document of ``cdsweep describe``.

    Its ``status`` is that of the row, else ``running``, ``planned``, or where the trial goes on from a checkpoint
    ``stopped`` (by the user) or ``interrupted``; ``row`` has the columns of ``trials/`` that apply, ``config`` what
    the trial was asked to be.
    """
    from orchestrator.plan import labels
    from orchestrator.report.status import status_document
    from orchestrator.report.sweep import read_plan, read_trial

    plan = read_plan(store)
    trial = read_trial(store, plan, trial_id)
    config = trial.config
    row, running, saved, state = store.trial(trial_id), None, None, ""
    if row is None:
        known = status_document(store)
        state = known["state"]
        running = next((r for r in known["running"] if r["trial_id"] == trial_id), None)
        saved = store.checkpoint_step(trial_id)
    return {
        "sweep": store.name,
        "trial_id": trial_id,
        "status": row["status"]
        if row
        else _status(state, running=running is not None, begun=saved is not None),
        "error": row["error"] if row else None,
        "label": labels((*plan.trials, trial))[trial_id],
        "row": None if row is None else {key: _plain(v) for key, v in row.items() if v is not None},
        "running": running,
        "checkpoint_step": saved,
        "adapter": store.adapter_url(trial_id),
        "image": store.image_url(trial_id),
        "config": config.model_dump(mode="json", exclude_none=True, exclude={"contents"}),
    }


def _status(state: str, *, running: bool, begun: bool) -> str:
    """Return the status of a trial without a row, in a sweep of this state."""
    if running:
        return "running"
    return "planned" if not begun else "stopped" if state == "stopped" else "interrupted"


_SHOWN_ABOVE = ("trial_id", "status", "error")


def _lines(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    parts = {**(document["running"] or {}), **(document["row"] or {})}
    parts |= {
        key: document[key] for key in ("checkpoint_step", "adapter", "image") if document[key] is not None
    }
    for name, value in parts.items():
        if name not in _SHOWN_ABOVE:
            yield name, f"{value:.6g}" if isinstance(value, float) else str(value)
    for name, value in document["config"].items():
        yield f"config.{name}", str(value)


def _plain(value: Any) -> Any:
    """Return a value of a row as JSON has it; a number that is none is left out."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, bool | int | str) else str(value)
