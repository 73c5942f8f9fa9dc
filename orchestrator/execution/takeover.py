"""Results of equal trials in other sweeps of the storage: they are copied, not made again.

Equal is what this sweep would have made itself. What a certified search asked of an adapter for a box, and which
further rounds it had, hangs on all else in its sweep and is no part of the trial: its id does not tell of the search.
"""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from orchestrator.errors import CdsweepError
from orchestrator.execution.trials.rounds import charged
from orchestrator.plan import Plan, PlannedTrial, resolve_thresholds
from orchestrator.report.sweep import read_baseline, read_plan, read_spec
from orchestrator.results import layout
from orchestrator.results.catalog import list_sweeps
from orchestrator.results.schema import asked_gpu_seconds, rounds_of
from orchestrator.results.store import SweepStore
from orchestrator.spec import asks_box, meaning
from trainers.adapters.files import LOOKS
from trainers.config import BaselineStatistics


def take_over(plan: Plan, store: SweepStore, baseline: BaselineStatistics, console: Console) -> None:
    """Copy what other sweeps of the storage have of trials that have no results here, and say so."""
    here = store.trial_ids()
    missing = {trial.trial_id: trial for trial in plan.trials if trial.trial_id not in here}
    for name in list_sweeps(store.storage) if missing else ():
        other = SweepStore(store.storage, name)
        common = sorted(other.trial_ids() & missing.keys()) if name != store.name else []
        if not common:
            continue
        try:
            taken = list(_equal([missing[trial_id] for trial_id in common], store, other, baseline))
        except CdsweepError as error:
            console.print(f"warning: {other.url()} has trials of this sweep, but {error}", soft_wrap=True)
            continue
        for trial_id in taken:
            _copy(missing[trial_id], other, store)
            del missing[trial_id]
        if taken:
            console.print(
                f"taken over from {name}: {len(taken)} equal trials, {', '.join(taken)} (--fresh runs them again)",
                soft_wrap=True,
            )


def _equal(
    trials: list[PlannedTrial], store: SweepStore, other: SweepStore, baseline: BaselineStatistics
) -> Iterator[str]:
    """Yield the ids of trials that have succeeded in another sweep, with the same meaning to the last default."""
    known = {trial.trial_id: trial.config for trial in read_plan(other).trials}
    if read_baseline(other) != baseline:
        return
    for trial in trials:
        row, there = other.trial(trial.trial_id), known.get(trial.trial_id)
        if row is None or there is None or row["status"] != "succeeded" or row["base_trial"] is not None:
            continue
        asked = 1 if trial.config.frontier is None else trial.config.frontier.rounds
        if rounds_of(row) != asked:  # a search had it trained further, or it was left before its last round
            continue
        if asked > 1 and (_searched(store) or _searched(other) or _questions(other.answers(trial.trial_id))):
            continue  # which rounds there are, and where they lean, the search says
        bounds = resolve_thresholds(trial.config, baseline)
        same = all(row[f"threshold_{name}"] == bound for name, bound in bounds.items())
        if same and meaning(there) == meaning(trial.config):
            yield trial.trial_id


def _searched(store: SweepStore) -> bool:
    return asks_box(read_spec(store))


def _questions(answers: pa.Table) -> int:
    """Return how many of them a search asked for; they come after those of the trial's own design."""
    known = "wall_seconds" in answers.column_names
    return int(pc.count(answers["wall_seconds"]).as_py()) if known else 0


def _copy(trial: PlannedTrial, other: SweepStore, store: SweepStore) -> None:
    """Copy the files of a trial, but for what a search asked; its row comes last, and with it the trial has finished.

    Looks of its questions lie among those of the design: where there are any, all are left, and are taken anew.
    """
    trial_id, rounds = trial.trial_id, other.beside_round(trial.trial_id)
    files, answers, row = other.adapter(trial_id), other.answers(trial_id), other.stored_trial(trial_id)
    assert row is not None, "it has succeeded"
    if questions := _questions(answers):
        files.pop(LOOKS, None)
        answers = answers.slice(0, answers.num_rows - questions)
    store.write_adapter(trial_id, files, rounds)
    if answers.num_rows:
        store.write_answers(trial_id, answers, rounds)
    copied = [layout.image(trial_id, rounds), layout.table(layout.EVALUATIONS, trial_id, rounds)]
    copied += [layout.answer_image(trial_id, place, rounds) for place in range(answers.num_rows)]
    for path in (*copied, layout.table(layout.HISTORY, trial_id)):
        if (data := other.read_file(path)) is not None:
            store.write_file(path, data)
    if asked := asked_gpu_seconds(row):
        store.write_trial(charged(trial.config, row, -asked))
    elif (data := other.read_file(path := layout.table(layout.TRIALS, trial_id))) is not None:
        store.write_file(path, data)
    store.settle(trial_id)
