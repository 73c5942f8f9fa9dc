"""``cdsweep export --grid``: one trial at many thresholds, or weights of models, each written as it is found."""

import math
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING

from orchestrator.commands.composed_picking import say_weighed
from orchestrator.errors import UsageError
from orchestrator.results.formats import Format
from orchestrator.terminal import say

if TYPE_CHECKING:
    from orchestrator.execution.sampling.replies import Gridded
    from orchestrator.results.store import SweepStore
    from trainers.config import TrialConfig
    from trainers.pipelines.families import Family


def say_measured(config: "TrialConfig", what: str) -> None:
    """Say what is waited for."""
    kind = "samples" if config.model.mixture is not None else "images"
    say(f"measuring {what}: up to {config.evaluation.images} held-out {kind} for each look")


def write_grid(
    store: "SweepStore",
    trial_id: str,
    count: int,
    form: Format,
    directory: str,
    family: "Family | None",
) -> list[str]:
    """Write what a trial for a box of thresholds, or for all weights, is at a grid of them; returns the paths.

    Args:
        store: The sweep.
        trial_id: Of the trial.
        count: Values of every threshold that moves, or of every weight.
        form: Whose names tensors are given.
        directory: New, empty, or with what the same command has left.
        family: Of the pipeline; None where it is not known.

    Raises:
        UsageError: The trial is no such one, its grid has too many points, or none of them holds; or the directory
            holds something else.
        StorageError: Something cannot be read or written.
    """
    from orchestrator.report.boxed_card import ANSWER
    from orchestrator.report.card import usage
    from orchestrator.report.sweep import read_plan, read_trial
    from orchestrator.results.grid_export import GridExport

    config = read_trial(store, read_plan(store), trial_id).config
    composed = config.model.composition is not None
    if config.method != "frontier":
        raise UsageError(
            f"trial {trial_id} has {'weights' if composed else 'thresholds'} that stand still ({config.method}): "
            "--grid goes with a trial of the method frontier"
        )
    exact = config.model.mixture is not None or config.tuned.model.pretrained is None
    grid = _gridded(store, trial_id, count, composed=composed)
    export = GridExport(
        directory,
        trial_id,
        grid.size,
        answer=ANSWER,
        adapter=_digest(store.adapter(trial_id)),
        usage=None if exact else usage(config.tuned),
        form=form,
        family=family,
        weights=composed,
    )
    done = set(export.known)
    if done:
        say(f"{len(done)} of {grid.size} points are there")
    left = set(range(grid.size)) - done
    if left and composed:
        say_weighed(config, f"{count} values of every weight, each")
    elif left:
        say_measured(config, f"{count} values of every threshold that moves")
    for place, point in grid.found(left):
        before, again = place in export.known, place in done
        folder = export.write(place, point.files(), held=point.held)
        if again and folder is None:
            continue  # as was told
        done.add(place)
        named = ", ".join(f"{name} {value:.4g}" for name, value in point.at.items())
        kl = point.answer.kl.mean
        spent = f"KL {kl:.3f} nats" if math.isfinite(kl) else "of a KL that is not known"
        more = " again, which costs less" if before else " after all" if again else ""
        came = f"{spent}, in {folder}{more}" if folder else "does not hold"
        say(f"[{len(done)}/{grid.size}] {named}: {came}")
    if not export.known:
        raise UsageError(
            f"trial {trial_id} holds none of the {grid.size} thresholds of this grid at 95 % confidence"
        )
    return export.paths()


def _gridded(store: "SweepStore", trial_id: str, count: int, *, composed: bool) -> "Gridded":
    from orchestrator.report.sweep import read_plan

    if composed:
        from orchestrator.execution.sampling.weighed import weighed_grid as measured
    else:
        from orchestrator.execution.sampling.replies import gridded as measured
    return measured(store, read_plan(store), trial_id, count)


def _digest(files: Mapping[str, bytes]) -> str:
    """Return what tells an adapter from another one of the same trial."""
    found = sha256()
    for name in sorted(files):
        found.update(sha256(files[name]).digest())
    return found.hexdigest()[:16]
